"""Megatron's precision-aware optimizer, and the one that it keeps in host memory, against the
ordinary one. On a CPU: ``stand_ins`` says what of a GPU is imitated; all else is Megatron's."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aent.estimate.state import optimizer_bytes
from aent.recipe.schema import Recipe
from distributed.ranks import run_ranks
from trainer import tiny
from trainer.stand_ins import FusedAdam, as_on_a_gpu
from trainer.test_state import save

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BEFORE, AFTER = ([tiny.mini_batch(tiny.RAGGED, seed=s) for s in seeds] for seeds in ((1, 2), (3,)))
SMALL = {"use_precision_aware_optimizer": True}
OFFLOADED = SMALL | {"optimizer_cpu_offload": True}
# clip_grad; trainer.optimizer.megatron
CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "ordinary": (0.5, {}),
    "unclipped": (0.0, {}),
    "float32": (0.5, SMALL),
    "bfloat16": (0.5, SMALL | {"exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}),
    "offloaded": (0.5, OFFLOADED | {"optimizer_offload_fraction": 1.0}),
    "offloaded, torch": (0.5, OFFLOADED | {"optimizer_offload_fraction": 1.0}),
    "half": (0.5, OFFLOADED | {"optimizer_offload_fraction": 0.5}),
}
OFFLOADS = ("offloaded", "offloaded, torch", "half")
RESUMED = ("float32", "bfloat16", *OFFLOADS)
BY_TORCH = ("ordinary", "unclipped", "offloaded, torch", "half")  # on the GPU, if there is a part


def recipe_of(case: str, path: str) -> Recipe:
    clip, megatron = CASES[case]
    optimizer = {
        "distributed": True,
        "implementation": "torch" if case in BY_TORCH else "transformer_engine",
        "lr": 1e-2,
        "weight_decay": 0.1,
        "clip_grad": clip,
        "megatron": megatron,
    }
    model = {"path": path, "dtype": "bfloat16"}
    trainer = {"optimizer": optimizer, "attention": "sdpa"}
    return tiny.recipe(dp=2, model=model, trainer=trainer, steps=6)


def learn(trainer: Any, batches: list[Any]) -> dict[str, Any]:
    done = [trainer.train_minibatch(batch, 0.4) for batch in batches]
    weights = {n: t.float().numpy().copy() for n, t in trainer.export() if t.numel()}
    return {"done": [(d.loss, d.grad_norm, d.lr) for d in done], "weights": weights}


def state_bytes(trainer: Any) -> tuple[int, int, int]:
    """Bytes of the optimizer's tensors where the rank computes, and in host memory; parameters of
    its shard."""
    device, host, count = 0, 0, 0
    for part in trainer.optimizer.chained_optimizers:
        inner = part.optimizer
        moved = getattr(inner, "gpu_params_map_cpu_copy", {})
        for parameter, state in inner.state.items():
            count += parameter.numel()
            tensors = {id(t): t for name, t in state.items() if name != "step"}
            size = sum(t.untyped_storage().nbytes() for t in tensors.values())
            if parameter in moved:
                host += size + inner.cpu_copy_map_grad[moved[parameter]].nbytes
            else:
                device += size
    return device, host, count


def run(rank: int, _world: int, path: str, folder: str) -> dict[Any, Any]:
    from aent.trainer import state
    from aent.trainer.trainer import Trainer

    as_on_a_gpu()
    out: dict[Any, Any] = {}
    for case in CASES:
        recipe = recipe_of(case, path)
        with tiny.world(recipe.trainer, rank, folder, case):
            trainer = Trainer(recipe, Path(path))
            kinds = [Path(folder, "saved", case, kind) for kind in ("untrained", "trained")]
            if rank == 0:
                for kind in kinds:
                    kind.mkdir(parents=True)
            torch.distributed.barrier()
            if case in RESUMED:
                save(trainer, kinds[0])
            out[case] = [learn(trainer, BEFORE)]
            if case in RESUMED:
                save(trainer, kinds[1])
            out[case].append(learn(trainer, AFTER))
            if case not in RESUMED:
                continue
            resumed = []
            for kind, batches in zip(kinds, (BEFORE, AFTER)):
                trainer = Trainer(recipe, Path(path))
                state.load(trainer, kind)
                resumed.append(learn(trainer, batches))
            out["resumed", case], out["bytes", case] = resumed, state_bytes(trainer)
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    path = tiny.write_model(tmp_path_factory.mktemp("model"), tied=True)
    return run_ranks(run, 2, str(path), str(tmp_path_factory.mktemp("worlds")))


@pytest.mark.parametrize("case", OFFLOADS)
def test_the_optimizer_in_host_memory_makes_the_same_updates_bit_for_bit(
    ranks: list[dict], case: str
) -> None:
    assert_same(ranks[0][case], ranks[0]["ordinary"])


def test_another_adam_makes_the_same_updates_to_rounding(ranks: list[dict]) -> None:
    for got, want in zip(ranks[0]["float32"], ranks[0]["ordinary"]):
        np.testing.assert_allclose(got["done"], want["done"], rtol=0.01)
        for name, weight in want["weights"].items():  # bfloat16 has 8 bits
            np.testing.assert_allclose(got["weights"][name], weight, rtol=2**-7, atol=1e-4)


def flat(weights: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in weights.values()])


def test_moments_of_16_bits_make_nearly_the_same_updates(ranks: list[dict]) -> None:
    before, after = (flat(each["weights"]) for each in ranks[0]["float32"])
    got = flat(ranks[0]["bfloat16"][1]["weights"])
    assert 0 < np.abs(got - after).sum() < 0.1 * np.abs(after - before).sum()


@pytest.mark.parametrize("case", ["float32", *OFFLOADS])
def test_gradients_are_clipped(ranks: list[dict], case: str) -> None:
    """Adam forgets a factor of its first gradient, but not that of the second."""
    clipped, not_clipped = (
        flat(ranks[0][name][0]["weights"]) for name in ("ordinary", "unclipped")
    )
    got = flat(ranks[0][case][0]["weights"])
    assert ranks[0]["ordinary"][0]["done"][0][1] > 1  # more than clip_grad
    assert np.abs(got - clipped).sum() < 0.05 * np.abs(got - not_clipped).sum()


@pytest.mark.parametrize("case", RESUMED)
def test_a_checkpoint_goes_on_bit_for_bit(ranks: list[dict], case: str) -> None:
    """Of the start, and after some updates."""
    for rank in ranks:
        assert_same(rank["resumed", case], rank[case])


@pytest.mark.parametrize("case", [case for case in RESUMED if case != "half"])
def test_bytes_of_a_resumed_state_are_those_of_the_estimate(ranks: list[dict], case: str) -> None:
    settings = recipe_of(case, "").trainer.optimizer
    for rank in ranks:
        device, host, count = rank["bytes", case]
        wanted = optimizer_bytes(settings, 2)
        assert (device, host) == pytest.approx((wanted[0] * count, wanted[1] * count), rel=0.01)


def test_half_of_the_optimizer_is_moved(ranks: list[dict]) -> None:
    """At least, as Megatron moves whole parameters; each is in one place."""
    (on_gpu, _), (_, on_host) = (
        optimizer_bytes(recipe_of(case, "").trainer.optimizer, 2)
        for case in ("float32", "offloaded")
    )
    for rank in ranks:
        device, host, count = rank["bytes", "half"]
        assert device / on_gpu + host / on_host == pytest.approx(count, rel=0.01)
        assert 0.5 <= host / on_host / count < 1


def test_the_stand_in_has_the_arguments_of_transformer_engines() -> None:
    contracts = json.loads((ROOT / "containers" / "contracts.json").read_text())
    known = contracts["transformer_engine"]["names"]
    recorded = known["transformer_engine.pytorch.optimizers.FusedAdam"]
    names = [part.partition("=")[0].strip() for part in recorded.strip("()").split(",")]
    assert [n for n in names if n != "*"] == list(inspect.signature(FusedAdam).parameters)


def assert_same(got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    for one, other in zip(got, want, strict=True):
        assert one["done"] == other["done"]
        assert one["weights"].keys() == other["weights"].keys()
        for name, weight in other["weights"].items():
            np.testing.assert_array_equal(one["weights"][name], weight, err_msg=name)
