"""One trainer rank: ``python -m aent.worker RUN_DIR MODEL_PATH``, started by ``aent train``,
torchrun or srun (see ``runtime.rank``)."""

from __future__ import annotations

import sys
from pathlib import Path

from aent import failures, loop
from aent.recipe.load import load
from aent.run import Run
from aent.runtime import children
from aent.runtime.rank import read_place


def main(run_dir: Path, model_path: Path) -> None:
    """Build this rank's run, train, leave."""
    children.die_with_parent()
    recipe = load(run_dir / "recipe.yaml", [])
    rank = read_place()
    with failures.recorded(run_dir, rank), Run.open(recipe, run_dir, model_path) as run:
        loop.train(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
