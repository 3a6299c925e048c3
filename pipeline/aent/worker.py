"""One trainer rank: ``python -m aent.worker RUN_DIR MODEL_PATH``, started by ``aent train``,
torchrun or srun (it reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT)."""

from __future__ import annotations

import sys
from pathlib import Path

from aent import loop
from aent.recipe.load import load
from aent.run import Run
from aent.runtime import children


def main(run_dir: Path, model_path: Path) -> None:
    """Build this rank's run, train, leave."""
    children.die_with_parent()
    recipe = load(run_dir / "recipe.yaml", [])
    with Run.open(recipe, run_dir, model_path) as run:
        loop.train(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
