"""The same mini-batch through every layout: same loss, same gradient, same weights back.

Every layout runs in one set of eight ranks, which is spawned once for the whole file.
"""

from __future__ import annotations

import copy
import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aent.algorithm.terms import MiniBatch, ReferenceKl
from aent.recipe.schema import Recipe
from distributed.ranks import run_ranks
from trainer import formulas, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# tensor, pipeline, data parallel sizes, sequence parallel
ONE = (1, 1, 1, False)
WHOLE_GRADIENTS = [ONE, (1, 2, 2, False), (2, 2, 1, False), (2, 1, 1, True)]
# every pair of dimensions, and all three; both models where whole gradients are compared
LAYOUTS = {
    "tied": [*WHOLE_GRADIENTS, (1, 2, 1, False), (2, 1, 2, False)],
    "untied": [*WHOLE_GRADIENTS, (1, 1, 2, False), (2, 1, 1, False), (2, 2, 2, True)],
}
MODELS = tuple(LAYOUTS)
SHARED_TOKENS = (14, 60)  # units split and a prompt alone, or every group whole
COEFFICIENTS = (0.0, 20.0)  # off; dominant: several times the policy's gradient
# tokens of a micro-batch, coefficient: five micro-batches, or two; the longest sequence has 23
FEW_TOKENS = 24
UPDATES = [(FEW_TOKENS, 0.0), (FEW_TOKENS, 20.0), (60, 20.0)]


def recipe_of(
    layout: tuple,
    micro_batch_tokens: int,
    share_prompts: bool = False,
    fused_head: bool = False,
    **sections: Any,
) -> Recipe:
    tp, pp, dp, sequence_parallel = layout
    # so small a rate leaves every fp32 weight as it is: many mini-batches see the same policy
    settings: dict[str, Any] = {
        "optimizer": {"lr": 1e-30, "clip_grad": 0.0, "distributed": layout[:3] == (2, 2, 2)}
    }
    settings |= {"sequence_parallel": sequence_parallel, "share_prompts": share_prompts}
    settings["fused_head"] = fused_head
    return tiny.recipe(tp, pp, dp, micro_batch_tokens, trainer=settings, **sections)


ALGORITHM = {"dual_clip": 1.5, "kl_coefficient": 0.3, "clip_high": 0.28}


def off_policy_batch() -> MiniBatch:
    """Old log-probs that clip, a reference, corrections."""
    mini = tiny.mini_batch(tiny.RAGGED, seed=5)
    mask = mini.batch.loss_mask
    g = torch.Generator().manual_seed(6)
    noise = 0.5 * torch.randn(3, mask.numel(), generator=g)
    reference = torch.where(mask, -4 + noise[1], 0.0)
    return tiny.with_terms(
        mini,
        old_logprobs=torch.where(mask, -4 + noise[0], 0.0),
        reference=ReferenceKl(reference, mask * ALGORITHM["kl_coefficient"]),
        correction=noise[2].abs(),
    )


def whole_gradients(trainer: Any) -> dict[str, np.ndarray] | None:
    """The accumulated gradients in the form in which the exporter returns weights; on rank 0."""
    exporter = copy.copy(trainer.exporter)
    exporter.parameters = {}
    for name, parameter in trainer.exporter.parameters.items():
        gradient = parameter.main_grad.view_as(parameter)
        gradient.tensor_model_parallel = parameter.tensor_model_parallel
        gradient.partition_dim = parameter.partition_dim
        exporter.parameters[name] = gradient
    return {n: t.numpy().copy() for n, t in exporter if t.numel()}


def not_returned(trainer: Any, path: str) -> list[str]:
    """Names that the export does not give back bit for bit (rank 0)."""
    exported = {n: t for n, t in trainer.export() if t.numel()}
    stored = load_file(f"{path}/model.safetensors")
    names = sorted(set(exported) ^ set(stored))
    return names + [n for n in stored if n in exported and not torch.equal(stored[n], exported[n])]


def numbers(result: Any) -> dict[str, Any]:
    """A result's fields, tensors as arrays: they come from another process."""
    tensors = {k: v.numpy() for k, v in vars(result).items() if isinstance(v, torch.Tensor)}
    return vars(result) | tensors


def one_layout(trainer: Any, layout: tuple, path: str, rank: int) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    batch = tiny.mini_batch(tiny.RAGGED)
    out["score"] = trainer.score(batch.batch).numpy()
    missing = not_returned(trainer, path)
    out["not returned"] = missing if rank == 0 else []
    for tokens, coefficient in UPDATES:
        trainer.recipe = recipe_of(layout, tokens)
        out[tokens, coefficient] = numbers(trainer.train_minibatch(batch, coefficient))
        if tokens == FEW_TOKENS and layout in WHOLE_GRADIENTS:
            out["gradients", coefficient] = whole_gradients(trainer)
    trainer.recipe = recipe_of(layout, FEW_TOKENS, fused_head=True)
    result = trainer.train_minibatch(batch, COEFFICIENTS[1])
    out["fused"] = numbers(result)
    if layout in WHOLE_GRADIENTS:
        out["gradients", "fused"] = whole_gradients(trainer)
        trainer.recipe = recipe_of(layout, FEW_TOKENS, algorithm=ALGORITHM)
        result = trainer.train_minibatch(off_policy_batch(), 0.5)
        out["off policy"] = {"loss": result.loss, "grad_norm": result.grad_norm}
        out["gradients", "off policy"] = whole_gradients(trainer)
    # None: each prompt as often as it is answered
    for tokens in (None, *SHARED_TOKENS) if layout == ONE else SHARED_TOKENS:
        trainer.recipe = recipe_of(layout, tokens or 60, share_prompts=tokens is not None)
        result = trainer.train_minibatch(tiny.grouped_batch(), 0.5)
        out["grouped", tokens] = numbers(result)
        if layout in WHOLE_GRADIENTS:
            out["gradients", "grouped", tokens] = whole_gradients(trainer)
        out["grouped score", tokens] = trainer.score(tiny.grouped_batch().batch).numpy()
    out["padding gradient"] = padding_gradient(trainer)
    few = tiny.mini_batch([(4, 3)])  # one sequence: nothing for the second data-parallel rank
    out["few"] = vars(trainer.train_minibatch(few, 1.0))["loss"]
    return out


def padding_gradient(trainer: Any) -> float:
    """Largest gradient of an embedding or output row beyond the vocabulary, on this rank."""
    rows = [
        p.main_grad[tiny.VOCAB - (trainer.bridge.padded_vocab_size // 2) :]
        for n, p in trainer.exporter.parameters.items()
        if ("word_embeddings" in n or "output_layer" in n) and len(p.main_grad) < tiny.VOCAB
    ]
    last = trainer.policy.pg_collection.tp.rank() == 1
    return max((float(r.abs().max()) for r in rows), default=0.0) if last else 0.0


def run(rank: int, _world: int, paths: dict[str, str], folder: str) -> dict[Any, Any]:
    from aent.trainer.trainer import Trainer

    out: dict[Any, Any] = {}
    for number, layout in enumerate(dict.fromkeys(itertools.chain(*LAYOUTS.values()))):
        recipe = recipe_of(layout, FEW_TOKENS)
        with tiny.world(recipe.trainer, rank, folder, f"world-{number}") as mine:
            for model in [m for m in MODELS if mine and layout in LAYOUTS[m]]:
                trainer = Trainer(recipe, Path(paths[model]))
                out[model, layout] = one_layout(trainer, layout, paths[model], rank)
    return out


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {m: str(tiny.write_model(root / m, tied=m == "tied")) for m in MODELS}


@pytest.fixture(scope="module")
def ranks(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of the eight ranks saw."""
    return run_ranks(run, 8, paths, str(tmp_path_factory.mktemp("worlds")), timeout=900)


@cache
def by_formulas(path: str, case: float | str) -> tuple[formulas.Expected, dict[str, torch.Tensor]]:
    """What the formulas give on transformers' model, and their loss's gradients by name."""
    off_policy = case == "off policy"
    recipe = recipe_of(ONE, 60, **({"algorithm": ALGORITHM} if off_policy else {}))
    batch = off_policy_batch() if off_policy else tiny.mini_batch(tiny.RAGGED)
    reference = formulas.load(Path(path))
    coefficient = {"off policy": 0.5, "fused": COEFFICIENTS[1]}.get(case, case)  # type: ignore
    want = formulas.expected(reference, batch, recipe, coefficient)
    want.loss.backward()
    plain = formulas.Expected(**{name: value.detach() for name, value in vars(want).items()})
    return plain, formulas.gradients(reference)


CASES = [(m, layout) for m in MODELS for layout in LAYOUTS[m]]


@pytest.mark.parametrize(("model", "layout"), CASES)
@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_loss_and_gradient_norm_do_not_depend_on_the_layout(
    ranks: list[dict], model: str, layout: tuple, coefficient: float
) -> None:
    reference = ranks[0][model, ONE][FEW_TOKENS, coefficient]
    results = [ranks[0][model, layout][update] for update in UPDATES if update[1] == coefficient]
    if coefficient == COEFFICIENTS[1]:
        results.append(ranks[0][model, layout]["fused"])
    for result in results:
        assert result["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert result["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
        assert result["tokens"] == reference["tokens"] == 63
        assert result["flops"] == reference["flops"] > 0
        if layout[1] == 1:
            assert result["bubble"] is None
        else:
            assert 0 < result["bubble"] < 1
        for name in ("entropy", "clamped_entropy", "kept_mass", "kl_behaviour"):
            assert result[name] == pytest.approx(reference[name], rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_entropy_term_is_dominant_where_it_is_on(ranks: list[dict], model: str) -> None:
    results = ranks[0][model, ONE]
    off, on = (results[FEW_TOKENS, c]["grad_norm"] for c in COEFFICIENTS)
    assert on > 3 * off > 0.3


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_rank_has_the_same_result(ranks: list[dict], model: str, layout: tuple) -> None:
    seen = [r[model, layout] for r in ranks if (model, layout) in r]
    assert len(seen) == math.prod(layout[:3])
    for other in seen[1:]:
        assert (other["score"] == seen[0]["score"]).all()
        for key in UPDATES:
            a, b = dict(seen[0][key]), dict(other[key])
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_scoring_agrees_with_transformers(
    ranks: list[dict], paths: dict[str, str], model: str, layout: tuple
) -> None:
    mask = tiny.mini_batch(tiny.RAGGED).batch.loss_mask
    want, _ = by_formulas(paths[model], 0.0)
    score = torch.from_numpy(ranks[0][model, layout]["score"])
    torch.testing.assert_close(score[mask], want.log_prob, atol=2e-5, rtol=1e-5)
    assert not score[~mask].any()
    trained = ranks[0][model, layout][FEW_TOKENS, 0.0]
    np.testing.assert_allclose(trained["logprobs"], score.numpy(), atol=1e-5)
    for name in ("entropy", "clamped_entropy", "kept_mass"):
        assert trained[name] == pytest.approx(float(getattr(want, name).sum()), rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", WHOLE_GRADIENTS)
@pytest.mark.parametrize("case", [*COEFFICIENTS, "off policy", "fused"])
def test_gradients_agree_with_the_formulas_on_transformers(
    ranks: list[dict], paths: dict[str, str], model: str, layout: tuple, case: float | str
) -> None:
    want, wanted = by_formulas(paths[model], case)
    results = ranks[0][model, layout]
    got = results[case] if isinstance(case, str) else results[FEW_TOKENS, case]
    assert got["loss"] == pytest.approx(float(want.loss), rel=1e-5)
    norm = math.sqrt(sum(float(g.square().sum()) for g in wanted.values()))
    assert got["grad_norm"] == pytest.approx(norm, rel=1e-4)
    gradients = results["gradients", case]
    assert set(gradients) == set(wanted)
    for name, gradient in wanted.items():
        error = np.linalg.norm(gradients[name] - gradient.numpy())
        assert error <= 1e-4 * max(float(gradient.norm()), 1e-3 * norm), name


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_export_gives_every_tensor_back(ranks: list[dict], model: str, layout: tuple) -> None:
    assert ranks[0][model, layout]["not returned"] == []


@pytest.mark.parametrize(("model", "layout"), [c for c in CASES if c[1][0] == 2])
def test_padded_vocabulary_rows_get_no_gradient(
    ranks: list[dict], model: str, layout: tuple
) -> None:
    assert all(r[model, layout]["padding gradient"] == 0.0 for r in ranks if (model, layout) in r)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_a_rank_without_sequences_takes_part(ranks: list[dict], model: str, layout: tuple) -> None:
    reference = ranks[0][model, ONE]["few"]
    assert ranks[0][model, layout]["few"] == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize(("model", "layout"), CASES)
@pytest.mark.parametrize("tokens", SHARED_TOKENS)
def test_shared_prompts_change_nothing_but_the_work(
    ranks: list[dict], model: str, layout: tuple, tokens: int
) -> None:
    results, reference = ranks[0][model, layout], ranks[0][model, ONE]
    alone, shared = reference["grouped", None], results["grouped", tokens]
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert shared["flops"] < alone["flops"]
    assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    np.testing.assert_allclose(shared["logprobs"], alone["logprobs"], atol=2e-5)
    score = results["grouped score", tokens]
    np.testing.assert_allclose(score, reference["grouped score", None], atol=2e-5)
    if layout in WHOLE_GRADIENTS:
        wanted = reference["gradients", "grouped", None]
        for name, gradient in results["gradients", "grouped", tokens].items():
            error = np.linalg.norm(gradient - wanted[name])
            assert error <= 1e-4 * max(np.linalg.norm(wanted[name]), 1e-3 * alone["grad_norm"]), (
                name
            )
