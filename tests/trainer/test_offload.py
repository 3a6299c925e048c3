"""The optimizer in host memory and back: the same bits, and no memory meanwhile. One rank: with
several each has the same to do (``orchestrator/test_turns.py`` has two)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.ranks import run_ranks
from trainer import tiny

pytestmark = pytest.mark.slow

CHUNK = 10_007  # bytes: tensors lie across chunks
BATCHES = [tiny.mini_batch(tiny.RAGGED, seed=s) for s in (1, 2)]
# main parameters of float32 weights are the weights themselves, or views of them
CASES = [(dtype, distributed) for dtype in ("float32", "bfloat16") for distributed in (False, True)]


def held(trainer: Any) -> dict[str, int]:
    """Bytes of storages: of the weights, of the gradients, of the rest of the optimizer."""
    weights = {p.untyped_storage()._cdata for p in trainer.policy.parameters()}
    own: dict[int, int] = {}
    for part in getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer]):
        tensors = [p for group in part.optimizer.param_groups for p in group["params"]]
        for state in part.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        storages = [tensor.untyped_storage() for tensor in tensors]
        own |= {s._cdata: s.nbytes() for s in storages if s._cdata not in weights}
    return {
        "weights": sum(p.untyped_storage().nbytes() for p in trainer.policy.parameters()),
        "gradients": sum(b.grad_data.untyped_storage().nbytes() for b in trainer.model.buffers),
        "optimizer": sum(own.values()),
    }


def state_of(trainer: Any) -> list[Any]:
    """Everything that the next update depends on, by value."""
    found: list[Any] = [p.detach().float().numpy().copy() for p in trainer.policy.parameters()]
    for part in getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer]):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                found.append(parameter.detach().float().numpy().copy())
                state = part.optimizer.state[parameter]
                found += [state[name].float().numpy().copy() for name in sorted(state)]
    return found


def learn(trainer: Any, offload: Any | None) -> dict[str, Any]:
    """Two updates, with the optimizer away between them if ``offload`` is given."""
    seen: dict[str, Any] = {"norms": [], "sizes": []}
    for batch in BATCHES:
        result = trainer.train_minibatch(batch, 0.4)
        seen["norms"].append((result.loss, result.grad_norm))
        if offload is None:
            continue
        before = held(trainer)
        offload.offload()
        seen["sizes"].append((before, held(trainer)))
        trainer.score(batch.batch)  # needs neither
        weights = [t.float().numpy().copy() for _, t in trainer.export()]
        with pytest.raises(RuntimeError, match="already"):
            offload.offload()
        offload.onload()
        assert held(trainer) == before
        assert all(not buffer.grad_data.any() for buffer in trainer.model.buffers)
        again = [t.float().numpy() for _, t in trainer.export()]
        assert all((a == b).all() for a, b in zip(weights, again))
    return seen | {"state": state_of(trainer)}


def run(rank: int, _world: int, path: str, folder: str) -> dict[Any, Any]:
    from aent.trainer.offload import Offload
    from aent.trainer.trainer import Trainer

    out: dict[Any, Any] = {}
    for dtype, distributed in CASES:
        recipe = tiny.recipe(
            model={"path": path, "dtype": dtype},
            trainer={"optimizer": {"distributed": distributed}},
        )
        with tiny.world(recipe.trainer, rank, folder, f"{dtype}-{distributed}"):
            stays, leaves = Trainer(recipe, Path(path)), Trainer(recipe, Path(path))
            offload = Offload(leaves.model, leaves.optimizer, CHUNK)
            offload.offload()  # before the first update Adam has no moments yet
            offload.onload()
            out[dtype, distributed] = learn(stays, None), learn(leaves, offload)
    return out


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("offload")
    path = tiny.write_model(folder / "model", tied=True)
    return run_ranks(run, 1, str(path), str(folder))


@pytest.mark.parametrize("case", CASES)
def test_updates_are_the_same_bit_for_bit(learnt: list[dict[Any, Any]], case: Any) -> None:
    for rank in learnt:
        stays, leaves = rank[case]
        assert stays["norms"] == leaves["norms"]
        assert len(stays["state"]) == len(leaves["state"])
        assert all((a == b).all() for a, b in zip(stays["state"], leaves["state"]))


@pytest.mark.parametrize("case", CASES)
def test_weights_alone_keep_their_memory(learnt: list[dict[Any, Any]], case: Any) -> None:
    for rank in learnt:
        for before, away in rank[case][1]["sizes"]:
            assert before["optimizer"] > 0
            assert before["gradients"] > 0
            assert away == {"weights": before["weights"], "gradients": 0, "optimizer": 0}
