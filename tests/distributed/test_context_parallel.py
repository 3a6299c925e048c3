"""Sequences shared by context-parallel ranks: the loss, gradients and scores of one rank.

Every layout runs in one set of four ranks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aent.algorithm.terms import MiniBatch
from aent.recipe.schema import Recipe
from distributed.ranks import run_ranks
from distributed.test_trainer_parity import ALGORITHM, not_returned, numbers, whole_gradients
from distributed.test_trainer_parity import off_policy_batch as with_every_term
from trainer import formulas, tiny
from trainer.test_state import save

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# tensor, context, pipeline and data parallel sizes; further overrides
LAYOUTS: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "one": ((1, 1, 1, 1), {}),
    "context 2": ((1, 2, 1, 1), {}),
    "tensor 2": ((2, 2, 1, 1), {}),
    "sequence": ((2, 2, 1, 1), {"sequence_parallel": True}),
    "data 2": ((1, 2, 1, 2), {}),
    "pipeline 2": ((1, 2, 2, 1), {}),
}
SPLIT = list(LAYOUTS)[1:]
GSPO = {"policy_loss": "gspo", "aggregation": "sequence_mean"}
# coefficient, and what the recipe says besides
CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "off": (0.0, {}),
    "dominant": (20.0, {}),
    "fused": (20.0, {"trainer": {"fused_head": True}}),
    "every term": (0.5, {"algorithm": ALGORITHM}),
    "gspo": (0.5, {"algorithm": GSPO}),
    "shared": (0.5, {"trainer": {"share_prompts": True}}),
    "few": (1.0, {"algorithm": GSPO}),  # one response, of three tokens
}
# fewer cases for layouts that only add a dimension to "context 2", and for "sequence" without it
FEWER: dict[str, tuple[str, ...]] = {
    "tensor 2": ("dominant", "fused", "gspo"),
    "data 2": ("dominant", "every term", "few"),
    "pipeline 2": ("dominant", "every term", "shared"),
}
FORMULAS = ("off", "dominant", "every term")


def recipe_of(layout: str, case: str = "off") -> Recipe:
    (tensor, context, pipeline, data), more = LAYOUTS[layout]
    sections = dict(CASES[case][1])
    trainer = {"context_parallel": context, **more, **sections.pop("trainer", {})}
    # so small a rate leaves every fp32 weight as it is: many mini-batches see the same policy
    trainer["optimizer"] = {"lr": 1e-30, "clip_grad": 0.0}
    return tiny.recipe(tensor, pipeline, data, 24, trainer=trainer, **sections)


def batch_of(case: str) -> MiniBatch:
    if case == "every term":
        return with_every_term()
    if case == "shared":
        return tiny.grouped_batch()
    batch = tiny.mini_batch([(4, 3)] if case == "few" else tiny.RAGGED)
    if CASES[case][1].get("algorithm") == GSPO:
        old = with_every_term().terms.old_logprobs
        batch = tiny.with_terms(batch, old_logprobs=old[: len(batch.batch.tokens)])
    return batch


def run(rank: int, _world: int, path: str, folder: str) -> dict[str, Any]:
    from aent.trainer.trainer import Trainer

    out: dict[str, Any] = {}
    for layout in LAYOUTS:
        with tiny.world(recipe_of(layout).trainer, rank, folder, layout) as mine:
            if not mine:
                continue
            trainer, seen = Trainer(recipe_of(layout), Path(path)), out.setdefault(layout, {})
            seen["score"] = trainer.score(tiny.mini_batch(tiny.RAGGED).batch).numpy()
            missing = not_returned(trainer, path)
            seen["not returned"] = missing if rank == 0 else []
            for case in FEWER.get(layout, CASES):
                trainer.recipe = recipe_of(layout, case)
                seen[case] = numbers(trainer.train_minibatch(batch_of(case), CASES[case][0]))
                seen["gradients", case] = whole_gradients(trainer)
    for saved, loaded in RESUMED:
        with tiny.world(resumed(loaded).trainer, rank, folder, f"{saved}-{loaded}") as mine:
            if mine:
                states = Path(folder, "states")
                out[saved, loaded] = taken_up(Path(path), states, saved, loaded, rank)
    return out


# saved by the one, taken up by the other; None: a fresh start, which saves
RESUMED = [(None, "one"), (None, "context 2"), ("one", "context 2"), ("context 2", "one")]
BEFORE, AFTER = (tiny.mini_batch(tiny.RAGGED, seed=seed) for seed in (3, 4))


def resumed(layout: str) -> Recipe:
    size = LAYOUTS[layout][0][1]
    settings = {"optimizer": {"lr": 3e-3, "distributed": True}, "context_parallel": size}
    return tiny.recipe(1, 1, 1, 40, trainer=settings, steps=6)


def taken_up(path: Path, states: Path, saved: str | None, layout: str, rank: int) -> dict[str, Any]:
    """The update after a checkpoint: of this run's own, or of the one ``saved``."""
    from aent.trainer import state
    from aent.trainer.trainer import Trainer

    trainer = Trainer(resumed(layout), path)
    if saved is not None:
        state.load(trainer, states / saved)
    else:
        trainer.train_minibatch(BEFORE, 0.4)
        if rank == 0:
            (states / layout).mkdir(parents=True)
        torch.distributed.barrier()
        save(trainer, states / layout)
    done = trainer.train_minibatch(AFTER, 0.4)
    weights = {n: t.numpy().copy() for n, t in trainer.export() if t.numel()}
    return {"done": (done.loss, done.grad_norm, done.lr), "weights": weights}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture(scope="module")
def ranks(path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of the four ranks saw."""
    return run_ranks(run, 4, str(path), str(tmp_path_factory.mktemp("worlds")), timeout=900)


@pytest.mark.parametrize(
    ("layout", "case"), [(at, case) for at in SPLIT for case in FEWER.get(at, CASES)]
)
def test_loss_and_gradients_are_those_of_one_rank(
    ranks: list[dict], layout: str, case: str
) -> None:
    want, got = ranks[0]["one"][case], ranks[0][layout][case]
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
    assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)
    assert got["tokens"] == want["tokens"]
    for name in ("policy_loss", "entropy", "clamped_entropy", "kept_mass", "kl_behaviour"):
        assert got[name] == pytest.approx(want[name], rel=1e-5), name
    for name in ("logprobs", "entropies", "clamped_entropies", "clipped"):
        np.testing.assert_allclose(got[name], want[name], atol=2e-5, err_msg=name)
    assert_alike(ranks[0][layout]["gradients", case], ranks[0]["one"]["gradients", case])


def assert_alike(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    norm = math.sqrt(sum(float(np.square(g).sum()) for g in want.values()))
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        error = np.linalg.norm(got[name] - gradient)
        assert error <= 1e-4 * max(np.linalg.norm(gradient), 1e-3 * norm), name


@pytest.mark.parametrize("case", FORMULAS)
def test_gradients_agree_with_the_formulas_on_transformers(
    ranks: list[dict], path: Path, case: str
) -> None:
    reference = formulas.load(path)
    coefficient, _ = CASES[case]
    want = formulas.expected(reference, batch_of(case), recipe_of("one", case), coefficient)
    want.loss.backward()
    got = ranks[0]["context 2"]
    assert got[case]["loss"] == pytest.approx(float(want.loss), rel=1e-5)
    wanted = {name: g.numpy() for name, g in formulas.gradients(reference).items()}
    assert_alike(got["gradients", case], wanted)


@pytest.mark.parametrize("layout", SPLIT)
def test_every_rank_has_the_same_result(ranks: list[dict], layout: str) -> None:
    seen = [r[layout] for r in ranks if layout in r]
    assert len(seen) == math.prod(LAYOUTS[layout][0])
    for other in seen[1:]:
        for case in FEWER.get(layout, CASES):
            for name, value in seen[0][case].items():
                np.testing.assert_array_equal(other[case][name], value, err_msg=name)


@pytest.mark.parametrize("layout", SPLIT)
def test_scores_and_exported_weights(ranks: list[dict], layout: str) -> None:
    assert ranks[0][layout]["not returned"] == []
    np.testing.assert_allclose(ranks[0][layout]["score"], ranks[0]["one"]["score"], atol=2e-5)


@pytest.mark.parametrize(("saved", "loaded"), RESUMED[2:])
def test_a_checkpoint_is_taken_up_by_another_size(
    ranks: list[dict], saved: str, loaded: str
) -> None:
    before, after = ranks[0][None, saved], ranks[0][saved, loaded]
    np.testing.assert_allclose(after["done"], before["done"], rtol=1e-4)
    for name, weight in before["weights"].items():
        np.testing.assert_allclose(after["weights"][name], weight, atol=1e-4, err_msg=name)


def test_the_entropy_term_is_dominant_where_it_is_on(ranks: list[dict]) -> None:
    norms = [ranks[0]["one"][case]["grad_norm"] for case in ("off", "dominant")]
    assert norms[1] > 3 * norms[0] > 0.3
