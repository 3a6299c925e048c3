"""A checkpoint that megatron-core 0.16 wrote, in .venv, taken up here by 0.19.

``make test-py312`` alone has both.
"""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aent.runtime import megatron
from distributed.ranks import run_ranks
from trainer import tiny
from trainer.test_state import BEFORE, LAMBDA, go_on, recipe_of, save

pytestmark = [pytest.mark.slow, pytest.mark.py312]

ROOT = Path(__file__).resolve().parents[2]
OLDER = ROOT / ".venv/bin/python"
# the plain optimizer, and the distributed one, whose state is written another way
CASES = [("tensor 2", "tensor 2"), ("data 2", "data 2"), ("data 2", "tensor 2 distributed")]


def write(rank: int, _world: int, path: str, folder: str) -> dict[str, Any]:
    """Save after some updates, and continue."""
    from aent.trainer.trainer import Trainer

    out = {}
    for name in sorted({saved for saved, _ in CASES}):
        recipe = recipe_of(name)
        with tiny.world(recipe.trainer, rank, folder, f"save-{name}"):
            trainer = Trainer(recipe, Path(path))
            for batch in BEFORE:
                trainer.train_minibatch(batch, LAMBDA)
            if rank == 0:
                Path(folder, name).mkdir()
            torch.distributed.barrier()
            save(trainer, Path(folder, name))
            out[name] = go_on(trainer)
    return out


def read(rank: int, _world: int, path: str, folder: str) -> dict[Any, Any]:
    from aent.trainer import state
    from aent.trainer.trainer import Trainer

    out = {}
    for saved, loaded in CASES:
        recipe = recipe_of(loaded)
        with tiny.world(recipe.trainer, rank, folder, f"load-{saved}-{loaded}"):
            trainer = Trainer(recipe, Path(path))
            restored = state.load(trainer, Path(folder, saved))
            out[saved, loaded] = go_on(trainer) | {"rng": restored}
    return out


def write_all(path: str, folder: str) -> None:
    """In the other environment."""
    ranks = run_ranks(write, 2, path, folder)
    Path(folder, "written").write_bytes(pickle.dumps(ranks[0]))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    """What the writer's first rank did after it had saved; what every rank did here."""
    path = str(tiny.write_model(tmp_path_factory.mktemp("model"), tied=True))
    folder = tmp_path_factory.mktemp("run")
    code = "import sys; from trainer.test_other_megatron import write_all; write_all(*sys.argv[1:])"
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'pipeline'}:{ROOT / 'tests'}"}
    command = [OLDER, "-c", code, path, str(folder)]
    subprocess.run(command, env=environ, check=True, timeout=900)
    written = pickle.loads((folder / "written").read_bytes())
    return written, run_ranks(read, 2, path, str(folder))


def test_the_two_environments_have_the_two_versions(ranks: tuple) -> None:
    asked = "from aent.runtime.megatron import series; print(series())"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline")}
    said = subprocess.run([OLDER, "-c", asked], env=environ, capture_output=True, text=True)
    assert (said.stdout.strip(), megatron.series()) == megatron.SERIES


@pytest.mark.parametrize(("saved", "loaded"), CASES)
def test_what_0_16_wrote_goes_on_here(ranks: tuple, saved: str, loaded: str) -> None:
    written, here = ranks
    before, after = written[saved], here[0][saved, loaded]
    assert after["rng"] == (saved == loaded)
    if saved == loaded:
        assert after["draws"] == before["draws"]
        # of tokens that each rank samples: another layout samples others
        np.testing.assert_allclose(after["neutral"], before["neutral"], rtol=1e-4)
    np.testing.assert_allclose(after["losses"], before["losses"], rtol=1e-4)
    for name, weight in before["weights"].items():
        np.testing.assert_allclose(after["weights"][name], weight, atol=1e-5, err_msg=name)
