"""The trainer's state saved by one layout and restored by another. Real ranks, at most two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aent.recipe.schema import Recipe
from distributed.ranks import run_ranks
from trainer import tiny

pytestmark = pytest.mark.slow

LAMBDA = 0.4
BATCHES = [tiny.mini_batch(tiny.RAGGED, seed=s) for s in (1, 2, 3, 4)]
BEFORE, AFTER = BATCHES[:2], BATCHES[2:]
# tensor, pipeline, data parallel sizes, distributed optimizer
LAYOUTS = {
    "one": (1, 1, 1, False),
    "tensor 2": (2, 1, 1, False),
    "pipeline 2": (1, 2, 1, False),
    "data 2": (1, 1, 2, True),
    "data 2, on one": (1, 1, 2, True),
    "tensor 2 distributed": (2, 1, 1, True),
}
ON_ONE = "data 2, on one"  # with checkpoint.memory_efficient
SAVED = ("one", "tensor 2", "data 2", ON_ONE)
SAME = [(name, name) for name in SAVED]
CHANGED = [
    ("tensor 2", "one"),
    ("one", "pipeline 2"),
    ("data 2", "tensor 2 distributed"),
    (ON_ONE, "tensor 2 distributed"),
]


def recipe_of(name: str, lr: float = 3e-3) -> Recipe:
    tp, pp, dp, distributed = LAYOUTS[name]
    settings = {
        "optimizer": {"lr": lr, "weight_decay": 0.01, "distributed": distributed},
        "schedule": {"kind": "cosine", "warmup_steps": 1},
    }
    checkpoint = {"memory_efficient": name == ON_ONE}
    return tiny.recipe(tp, pp, dp, 40, trainer=settings, steps=6, checkpoint=checkpoint)


def draws() -> list[float]:
    """The next numbers of this rank's streams."""
    from megatron.core import tensor_parallel

    with tensor_parallel.get_cuda_rng_tracker().fork():
        forked = torch.rand(2)
    return [*forked.tolist(), *torch.rand(2).tolist(), float(np.random.rand())]


def save(trainer: Any, folder: Path) -> None:
    """A state that is waited for."""
    from aent.trainer import state

    request = state.begin_save(trainer, folder, copied=False)
    request.async_fn()
    state.finish_save(request)


def gathered_bytes(trainer: Any) -> tuple[int, int]:
    """Bytes of optimizer state that this rank holds in host memory for a checkpoint, and of its
    parameters."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values

    from aent.trainer import state

    how = state.metadata(trainer.recipe)
    model = trainer.policy.sharded_state_dict(metadata=dict(how))
    kept = trainer.optimizer.sharded_state_dict(model, metadata=how)["param_state"]
    storages = [each.data.untyped_storage() for each in nested_values(kept or {})]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert state._gathered({"param_state": kept}) == sizes.keys()
    return sum(sizes.values()), 4 * sum(p.numel() for p in trainer.policy.parameters())


def go_on(trainer: Any) -> dict[str, Any]:
    """What the trainer does from here on, in plain numbers."""
    seen: dict[str, Any] = {"draws": draws()}
    results = [trainer.train_minibatch(b, LAMBDA) for b in AFTER]
    seen["losses"] = [(r.loss, r.grad_norm, r.lr) for r in results]
    seen["neutral"] = [r.neutral_coefficient for r in results]  # averages over all updates
    seen["weights"] = {n: t.numpy().copy() for n, t in trainer.export() if t.numel()}
    return seen


def as_with_transformer_engine() -> None:
    """Set what Megatron sets if it finds Transformer Engine: the recipe asks for torch's Adam,
    whose steps are counted and saved in another way."""
    from megatron.core import optimizer

    optimizer.USING_PYTORCH_OPTIMIZER = False
    optimizer.distrib_optimizer.HAVE_APEX_OR_TE = True
    optimizer.distrib_optimizer.USING_TE_OPTIMIZER = True


def run(rank: int, _world: int, path: str, folder: str) -> dict[Any, Any]:
    from aent.trainer import state
    from aent.trainer.trainer import Trainer

    as_with_transformer_engine()
    out: dict[Any, Any] = {}
    for name in SAVED:
        recipe = recipe_of(name)
        with tiny.world(recipe.trainer, rank, folder, f"save-{name}") as mine:
            if not mine:
                continue
            target = Path(folder, name)
            if rank == 0:
                (target / "untrained").mkdir(parents=True)
                (target / "trained").mkdir()
                (target / "unwritable" / "__1_0.distcp").mkdir(parents=True)  # where rank 1 writes
            trainer = Trainer(recipe, Path(path))
            torch.distributed.barrier()
            save(trainer, target / "untrained")
            draws()
            for batch in BEFORE:
                trainer.train_minibatch(batch, LAMBDA)
            request = state.begin_save(trainer, target / "trained", copied=True)
            if name in ("data 2", ON_ONE):
                out["gathered", name] = gathered_bytes(trainer)
            out[name] = go_on(trainer)  # the state has changed when it is written
            request.async_fn()
            state.finish_save(request)
            if name == "tensor 2":
                request = state.begin_save(trainer, target / "unwritable", copied=False)
                try:
                    request.async_fn()
                except OSError as error:
                    out["unwritable"] = str(error)
            out["bytes", name] = [
                sum(f.stat().st_size for f in (target / kind).glob("*.distcp"))
                for kind in ("untrained", "trained")
            ]
            fresh = Trainer(recipe, Path(path))
            state.load(fresh, target / "untrained")
            out["untrained", name] = [fresh.train_minibatch(b, LAMBDA).loss for b in BATCHES]
    for saved, loaded in SAME + CHANGED:
        recipe = recipe_of(loaded)
        with tiny.world(recipe.trainer, rank, folder, f"{saved}-{loaded}") as mine:
            if mine:
                trainer = Trainer(recipe, Path(path))
                restored = state.load(trainer, Path(folder, saved, "trained"))
                out[saved, loaded] = go_on(trainer) | {"rng": restored}
    recipe = recipe_of("one", lr=1e-4)
    with tiny.world(recipe.trainer, rank, folder, "another rate") as mine:
        if mine:
            trainer = Trainer(recipe, Path(path))
            state.load(trainer, Path(folder, "one", "trained"))
            out["another rate"] = trainer.train_minibatch(AFTER[0], LAMBDA).lr
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = tiny.write_model(tmp_path_factory.mktemp("model"), tied=True)
    return run_ranks(run, 2, str(path), str(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize(("saved", "loaded"), SAME)
def test_same_layout_goes_on_to_the_last_bit(ranks: list[dict], saved: str, loaded: str) -> None:
    for seen in ranks:
        if saved not in seen:
            continue
        before, after = seen[saved], seen[saved, loaded]
        assert after["rng"]
        assert after["draws"] == before["draws"]
        assert after["losses"] == before["losses"]
        assert after["neutral"] == before["neutral"]
        for name, weight in before["weights"].items():
            np.testing.assert_array_equal(after["weights"][name], weight, err_msg=name)


@pytest.mark.parametrize(("saved", "loaded"), CHANGED)
def test_another_layout_goes_on_with_the_same_losses(
    ranks: list[dict], saved: str, loaded: str
) -> None:
    before, after = ranks[0][saved], ranks[0][saved, loaded]
    assert not after["rng"]  # streams belong to ranks: they are not restored, and this is reported
    np.testing.assert_allclose(after["losses"], before["losses"], rtol=1e-4)
    for name, weight in before["weights"].items():
        np.testing.assert_allclose(after["weights"][name], weight, atol=1e-4, err_msg=name)


def test_one_rank_of_a_group_gathers_the_optimizers_state_where_asked(ranks: list[dict]) -> None:
    for seen, of_rank in zip(ranks, (1, 0)):
        for name, share in (("data 2", 1), (ON_ONE, of_rank)):
            held, parameters = seen["gathered", name]
            # main weights and two moments, each with the buffer's padding
            assert 3 * share * parameters <= held <= 3 * share * 1.05 * parameters


def test_a_rank_that_cannot_write_is_told_so(ranks: list[dict]) -> None:
    assert "__1_0.distcp" in ranks[1]["unwritable"]
    assert "unwritable" not in ranks[0]  # tests/checkpoint/test_saving.py: it hears of it


def test_state_matters_for_the_losses(ranks: list[dict]) -> None:
    """Without the saved weights and moments the same batches give other losses."""
    untrained, trained = ranks[0]["untrained", "one"], ranks[0]["one"]["losses"]
    first, second = trained[0][0], trained[1][0]
    assert untrained[2:] == [first, second]  # trained from the state before the first update
    assert abs(untrained[0] - first) > 1e-2


@pytest.mark.parametrize("name", SAVED)
def test_the_checkpoint_before_the_first_update_is_as_large_as_one_after(
    ranks: list[dict], name: str
) -> None:
    first, later = ranks[0]["bytes", name]
    assert 0.98 * later < first < 1.02 * later


def test_recipe_rules_over_the_saved_rate(ranks: list[dict]) -> None:
    assert 0 < ranks[0]["another rate"] < 1e-4
