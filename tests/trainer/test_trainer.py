"""Consecutive optimizer steps: what changes, what does not, what is saved. Two ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aent.algorithm.terms import (
    ClippedGradient,
    EntropyGate,
    LossTerms,
    MiniBatch,
    ReferenceKl,
    Smoothing,
)
from aent.data.flat import Flat, kinds
from aent.recipe.schema import Recipe
from distributed.ranks import run_ranks
from entropy import reference
from trainer import formulas, tiny

LR, EPS, CLIP, LAMBDA = 3e-3, 1e-4, 0.5, 0.4
BATCHES = [tiny.mini_batch(tiny.RAGGED, seed=s) for s in (1, 2)]


def recipe_of(tp: int = 1, pp: int = 1, **sections: Any) -> Recipe:
    optimizer = {"lr": LR, "eps": EPS, "clip_grad": CLIP, "weight_decay": 0.01}
    settings = {"optimizer": optimizer, "mini_batches": 2}
    return tiny.recipe(tp, pp, 1, 40, trainer=settings, **sections)


def gradient_reaches(trainer: Any, coefficient: float) -> dict[str, Any]:
    """Which entropies a mini-batch's backward touches, and its losses."""
    from aent.trainer import loss

    reached = set()
    compute = loss.token_statistics

    def watched(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        stats = compute(logits, *args, **kwargs)
        if logits.is_leaf:  # the sample of the gradients' share: nothing of the model
            return stats
        for name in ("entropy", "clamped_entropy", "log_prob"):
            getattr(stats, name).register_hook(lambda _g, name=name: reached.add(name))
        return stats

    loss.token_statistics = watched
    try:
        result = trainer.train_minibatch(BATCHES[0], coefficient)
    finally:
        loss.token_statistics = compute
    return {"reached": sorted(reached), "loss": result.loss, "policy_loss": result.policy_loss}


OBJECTIVES = {
    "gspo": {"policy_loss": "gspo", "aggregation": "sequence_mean", "clip_high": 0.3},
    "cispo": {"policy_loss": "cispo", "clip_low": 1.0, "clip_high": 0.3},
    "controls": {"kl_coefficient": 0.1},
    "bonus": {},
}
NUCLEI = {"kind": "nucleus_anchor", "top_p": 0.6, "top_k": 30}
PROXY = {"kind": "low_probability_kl", "ratio": 0.2}


def objective_recipe(name: str, micro_batch_tokens: int) -> Recipe:
    # so small a rate leaves every weight as it is: every mini-batch sees the same policy
    return tiny.recipe(
        dp=2,
        micro_batch_tokens=micro_batch_tokens,
        trainer={"optimizer": {"lr": 1e-30, "clip_grad": 0.0}},
        algorithm=OBJECTIVES[name],
        entropy={"measure": "full" if name == "bonus" else "clamped"},
        entropy_controls=[NUCLEI, PROXY] if name == "bonus" else [],
    )


def objective_coefficient(name: str) -> float:
    return LAMBDA if name == "bonus" else 0.0


def old_batch(name: str) -> MiniBatch:
    """A mini-batch whose old log-probs lie so near the policy's (``formulas``) that some clip."""
    mini = tiny.mini_batch(tiny.RAGGED, seed=7)
    mask = mini.batch.loss_mask
    noise = torch.randn(mask.numel(), generator=torch.Generator().manual_seed(8))
    old = torch.where(mask, -6 + noise, 0.0)
    mini = tiny.with_terms(mini, old_logprobs=old)
    if name == "controls":  # what corrections and entropy controls make of it
        return tiny.with_terms(
            mini,
            correction=0.5 + noise.abs(),
            token_weight=(noise < 0.5).float(),
            # open for most of those that have a weight, so that some are cut by the clip alone
            entropy_gate=EntropyGate(torch.full_like(noise, 0.5), 2.0 + 9 * (noise < 0.45)),
            ratio_weight=0.3 * (noise > 0).float() * mask,
            old_kl_weight=(noise > 1).float(),
            zeta=0.2 * noise.abs() * mask,
            clip_high=0.1 + 0.2 * noise.abs(),
            clipped_gradient=ClippedGradient(
                torch.full_like(noise, 0.25), torch.full_like(noise, 0.75)
            ),
            reference=ReferenceKl(old, noise.clamp(min=0)),
        )
    if name == "bonus":
        low, high = torch.full_like(noise, 1.0), torch.full_like(noise, 1.5)
        return tiny.with_terms(
            mini,
            smoothing=Smoothing(noise.abs(), low, high),
            nucleus_weight=0.01 * noise.clamp(min=0),
            proxy_weight=0.05 * noise.neg().clamp(min=0),
            entropy_weight=mini.terms.entropy_weight * noise.abs(),
        )
    return mini


def every_term() -> MiniBatch:
    """A mini-batch whose loss has all terms there are."""
    controls, bonus = old_batch("controls"), old_batch("bonus").terms
    names = ("smoothing", "nucleus_weight", "proxy_weight", "entropy_weight")
    of_bonus = {name: getattr(bonus, name) for name in names}
    return tiny.with_terms(controls, **of_bonus)


def leaves(terms: Flat, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The way to each tensor of the terms."""
    for name in kinds(type(terms)):
        value = getattr(terms, name)
        if isinstance(value, Flat):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def moved(terms: Flat, path: tuple[str, ...]) -> Any:
    """The terms with this one tensor, which must be there, another."""
    name, *rest = path
    value = getattr(terms, name)
    return replace(terms, **{name: moved(value, tuple(rest)) if rest else value * 1.5 + 1})


def read(trainer: Any) -> dict[str, bool]:
    """For each term, whether loss or gradient are others when it is another."""

    def train(terms: LossTerms) -> tuple[float, float]:
        result = trainer.train_minibatch(replace(whole, terms=terms), LAMBDA)
        return result.loss, result.grad_norm

    trainer.recipe, whole = objective_recipe("bonus", 60), every_term()
    before = train(whole.terms)
    assert train(whole.terms) == before
    return {
        ".".join(path): train(moved(whole.terms, path)) != before for path in leaves(whole.terms)
    }


def objectives(trainer: Any) -> dict[Any, Any]:
    """Loss, clipped tokens and gradient of each objective, in five micro-batches or in two."""
    out = {}
    for name in OBJECTIVES:
        for tokens in (24, 60):
            trainer.recipe = objective_recipe(name, tokens)
            result = trainer.train_minibatch(old_batch(name), objective_coefficient(name))
            gradient = torch.cat([p.main_grad.flatten() for p in trainer.policy.parameters()])
            assert int(result.clipped.sum()) == result.clip_fraction
            out[name, tokens] = result.loss, result.clip_fraction, result.grad_norm, gradient
    return out


def weights_of(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.policy.parameters()]


def untouched_by_infinity(trainer: Any) -> dict[str, Any]:
    """A mini-batch whose gradient is not finite, after some that were; then several in a row."""
    from aent.trainer.trainer import MAX_SKIPPED

    before = weights_of(trainer)
    broken = tiny.mini_batch(tiny.RAGGED)
    broken = tiny.with_terms(broken, advantages=broken.terms.advantages * math.inf)
    result = trainer.train_minibatch(broken, 0.0)
    same = all(torch.equal(a, b) for a, b in zip(before, weights_of(trainer)))
    after = trainer.train_minibatch(BATCHES[0], 0.0)
    skipped = trainer.skipped_updates
    for _ in range(MAX_SKIPPED - 1):
        trainer.train_minibatch(broken, 0.0)
    with pytest.raises(RuntimeError, match=rf"\b{MAX_SKIPPED}\b"):
        trainer.train_minibatch(broken, 0.0)
    return {
        "skipped": result.update_skipped,
        "same": same,
        "count": skipped,
        "next": (after.update_skipped, after.grad_norm),
    }


def measured_on_every_token(trainer: Any) -> dict[str, Any]:
    """The gradients' squares if the sample is all tokens, and the values per token."""
    from aent.trainer import gradient_share

    before = gradient_share.ONE_IN, gradient_share.AT_MOST
    gradient_share.ONE_IN, gradient_share.AT_MOST = 1, 1000
    try:
        result = trainer.train_minibatch(BATCHES[0], 0.0)
    finally:
        gradient_share.ONE_IN, gradient_share.AT_MOST = before
    return {
        "policy": result.policy_gradient_square,
        "entropy": result.entropy_gradient_square,
        "product": result.gradient_product,
        "neutral": result.neutral_coefficient,
        "tokens": [result.logprobs, result.entropies, result.clamped_entropies, result.clipped],
    }


def run(rank: int, world: int, path: str, folder: str) -> dict[str, Any]:
    from aent.trainer.trainer import Trainer

    out: dict[str, Any] = {}
    recipe = recipe_of(pp=2)
    with tiny.world(recipe.trainer, rank, folder, "steps"):
        trainer = Trainer(recipe, Path(path))
        results = [trainer.train_minibatch(b, LAMBDA) for b in BATCHES]
        out["steps"] = [(r.loss, r.policy_loss, r.grad_norm, r.lr) for r in results]
        trainer.save_pretrained(Path(folder) / "saved")
        out["infinity"] = untouched_by_infinity(trainer)
        out["off"] = gradient_reaches(trainer, 0.0)
        out["on"] = gradient_reaches(trainer, LAMBDA)
        trainer.recipe = recipe_of(pp=2, entropy={"measure": "full"})
        out["full"] = gradient_reaches(trainer, LAMBDA)
    recipe = objective_recipe("gspo", 24)
    with tiny.world(recipe.trainer, rank, folder, "objectives"):
        trainer = Trainer(recipe, Path(path))
        out["objectives"], out["read"] = objectives(trainer), read(trainer)
    kl = recipe_of(tp=2, algorithm={"kl_coefficient": 0.1})
    with tiny.world(kl.trainer, rank, folder, "reference"):
        trainer = Trainer(kl, Path(path))
        first = trainer.score(BATCHES[0].batch)
        out["measured"] = measured_on_every_token(trainer)
        moved, kept = trainer.score(BATCHES[0].batch), trainer.score_reference(BATCHES[0].batch)
        back = trainer.score(BATCHES[0].batch)
        controls = [NUCLEI, {"kind": "entropy_budget"}]
        fresh = Trainer(recipe_of(tp=2, entropy_controls=controls), Path(path))
        out["entropies"] = fresh.score_tokens(BATCHES[0].batch)
        out["reference"] = [
            torch.equal(kept, first), torch.equal(moved, back), torch.equal(moved, first)
        ]  # fmt: skip
    return out


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def folder(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path / "tokenizer.json").write_text("{}")
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def ranks(path: Path, folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run, 2, str(path), str(folder))


@pytest.mark.slow
def test_two_mini_batches_as_by_hand(ranks: list[dict], path: Path, folder: Path) -> None:
    model = formulas.load(path)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]  # Megatron decays no vector
    groups = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=EPS, weight_decay=0.01)
    for batch, (loss, _, grad_norm, lr) in zip(BATCHES, ranks[0]["steps"]):
        want = formulas.expected(model, batch, recipe_of(), LAMBDA)
        adam.zero_grad()
        want.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        assert loss == pytest.approx(float(want.loss), rel=1e-5)
        assert grad_norm == pytest.approx(float(norm), rel=1e-4)
        assert grad_norm > CLIP
        assert lr == LR
        adam.step()
    saved = formulas.load(folder / "saved").state_dict()
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(saved[name], parameter, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
def test_saved_folder_is_whole(ranks: list[dict], folder: Path) -> None:
    assert ranks
    assert (folder / "saved" / "tokenizer.json").read_text() == "{}"
    assert not (folder / "saved.partial").exists()


@pytest.mark.slow
def test_coefficient_zero_keeps_no_graph_for_an_entropy(ranks: list[dict]) -> None:
    last = ranks[1]
    assert last["off"]["reached"] == ["log_prob"]
    assert last["off"]["loss"] == last["off"]["policy_loss"]
    assert last["on"]["reached"] == ["clamped_entropy", "log_prob"]
    assert last["on"]["loss"] != last["on"]["policy_loss"]
    assert last["full"]["reached"] == ["entropy", "log_prob"]


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_changes_nothing(ranks: list[dict]) -> None:
    for rank in ranks:
        seen = rank["infinity"]
        assert seen["skipped"]
        assert seen["same"]
        assert seen["count"] == 1
        skipped, grad_norm = seen["next"]
        assert not skipped
        assert 0 < grad_norm < 1e4


@pytest.mark.slow
def test_reference_scores_by_the_first_weights(ranks: list[dict]) -> None:
    kept_is_first, policy_is_back, nothing_moved = ranks[0]["reference"]
    assert kept_is_first
    assert policy_is_back
    assert not nothing_moved


@pytest.mark.slow
def test_scoring_gives_what_controls_need_too(ranks: list[dict], path: Path) -> None:
    recipe, mask = recipe_of(entropy_controls=[NUCLEI]), BATCHES[0].batch.loss_mask
    with torch.no_grad():
        z = formulas.response_logits(formulas.load(path), BATCHES[0].batch)
        want = formulas.expected_from_logits(z, BATCHES[0], recipe, 0.0).entropy
        nuclei = formulas.nucleus_entropies(z / 0.8, recipe.control("nucleus_anchor"))
    covariance, slope = reference.slopes(z, BATCHES[0].batch.tokens[mask], 0.8, z.shape[1])
    scores = ranks[0]["entropies"]
    for got, expected in (
        (scores.entropies, want),
        (scores.nucleus_entropies, nuclei),
        (scores.covariances, covariance.float()),
        (scores.entropy_slopes, slope.float()),
    ):
        torch.testing.assert_close(got[mask], expected, atol=2e-5, rtol=1e-5)
        assert not got[~mask].any()
    assert nuclei.min() < 0.5 < nuclei.max()


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_do_not_depend_on_micro_batches_and_ranks(
    ranks: list[dict], path: Path, name: str
) -> None:
    """A response's ratio is that of the whole response, wherever the mini-batch is cut."""
    model = formulas.load(path)
    coefficient = objective_coefficient(name)
    want = formulas.expected(model, old_batch(name), objective_recipe(name, 60), coefficient)
    want.loss.backward()
    norm = math.sqrt(sum(float(g.square().sum()) for g in formulas.gradients(model).values()))
    (loss, clipped, grad_norm, few), (*_, many) = (
        ranks[0]["objectives"][name, tokens] for tokens in (60, 24)
    )
    assert loss == pytest.approx(float(want.loss), rel=1e-5)
    assert grad_norm == pytest.approx(norm, rel=1e-4)
    assert 0 < clipped < 63
    assert ranks[0]["objectives"][name, 24][0] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(many, few, atol=1e-5 * float(few.abs().max()), rtol=1e-4)


@pytest.mark.slow
def test_the_loss_reads_every_term(ranks: list[dict]) -> None:
    assert "smoothing.low" in ranks[0]["read"]
    assert not [name for name, is_read in ranks[0]["read"].items() if not is_read]


@pytest.mark.slow
def test_gradients_at_the_logits_are_autograds(ranks: list[dict], path: Path) -> None:
    """Two tensor-parallel ranks against autograd on the whole vocabulary in float64."""
    mini = BATCHES[0]
    z = formulas.response_logits(formulas.load(path), mini.batch).detach().double().requires_grad_()
    policy = formulas.expected_from_logits(z, mini, recipe_of(), 0.0)
    with_bonus = formulas.expected_from_logits(z, mini, recipe_of(), 1.0)
    (policy_gradient,) = torch.autograd.grad(policy.loss, z, retain_graph=True)
    (entropy_gradient,) = torch.autograd.grad(with_bonus.loss - policy.loss, z)
    for rank in ranks:
        seen = rank["measured"]
        assert seen["policy"] == pytest.approx(float(policy_gradient.square().sum()), rel=1e-4)
        assert seen["entropy"] == pytest.approx(float(entropy_gradient.square().sum()), rel=1e-4)
        # the bonus enters the loss with a minus: entropy_gradient is that of -H
        product = -float((policy_gradient * entropy_gradient).sum())
        assert seen["product"] == pytest.approx(product, rel=1e-3)
        assert seen["neutral"] == pytest.approx(seen["product"] / seen["entropy"])  # the first one
        *told, clipped = seen["tokens"]
        mask = mini.batch.loss_mask
        for values, want in zip(told, (policy.log_prob, policy.entropy, policy.clamped_entropy)):
            torch.testing.assert_close(values[mask].double(), want, atol=2e-5, rtol=1e-5)
            assert not values[~mask].any()
        assert not clipped.any()  # one mini-batch: every ratio is 1


def test_the_sample_of_tokens_is_fixed_small_and_without_repetition() -> None:
    from aent.trainer.gradient_share import sampled_tokens

    for count, size in ((1, 1), (16, 1), (17, 2), (500, 32), (5000, 64)):
        chosen = sampled_tokens(count, torch.device("cpu"), 7, 3, 0)
        assert len(set(chosen.tolist())) == len(chosen) == size
        assert torch.equal(chosen, sampled_tokens(count, torch.device("cpu"), 7, 3, 0))
        assert 0 <= int(chosen.min()) <= int(chosen.max()) < count


def test_every_update_and_micro_batch_has_a_sample_of_its_own() -> None:
    """So in the long run every token of a fixed batch is measured equally often."""
    from aent.trainer.gradient_share import sampled_tokens

    draws = [(seed, update, place) for seed in (0, 1) for update in range(100) for place in (0, 9)]
    counts = torch.zeros(160)
    for draw in draws:
        counts[sampled_tokens(160, torch.device("cpu"), *draw)] += 1
    assert counts.mean() == 25  # 400 draws of one token in sixteen
    assert counts.min() > 5
    assert counts.max() < 50
    assert len({tuple(sampled_tokens(160, torch.device("cpu"), *d).tolist()) for d in draws}) == 400


def test_the_neutral_coefficient_is_a_ratio_of_averages() -> None:
    from aent.trainer.gradient_share import Neutral

    neutral = Neutral()
    assert math.isnan(neutral.add(0.0, 0.0, 0.0))
    assert math.isnan(neutral.norm_ratio)
    assert neutral.add(0.2, 2.0, 8.0) == pytest.approx(0.1)
    assert neutral.norm_ratio == pytest.approx(2.0)
    ratio = (0.9 * 0.2 - 0.4) / (0.9 * 2.0 + 1.0)  # policy steps that raise the entropy count too
    assert neutral.add(-0.4, 1.0, 1.0) == pytest.approx(ratio)
    assert neutral.norm_ratio == pytest.approx(math.sqrt((0.9 * 8 + 1) / (0.9 * 2 + 1)))
    for broken in ((math.nan, 1.0, 1.0), (1.0, math.inf, 1.0), (1.0, 1.0, math.nan)):
        assert neutral.add(*broken) == pytest.approx(ratio)
    assert Neutral(**neutral.to_dict()) == neutral


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_schedule_moves_once_a_mini_batch(kind: str) -> None:
    from aent.trainer.optimizer import LearningRate

    recipe = tiny.recipe(
        trainer={
            "schedule": {"kind": kind, "warmup_steps": 2, "min_lr": 1e-4},
            "optimizer": {"lr": 1e-3},
            "mini_batches": 2,
        },
        steps=5,
    )
    group = {"lr": 0.0}
    schedule = LearningRate(recipe, SimpleNamespace(param_groups=[group]))
    rates = []
    for _ in range(10):
        rates.append(group["lr"])
        schedule.move()
    assert 0 < rates[0] < rates[1] < 1e-3  # NeMo's warm-up does not start at 0
    assert rates[2] == pytest.approx(1e-3)
    if kind == "constant":
        assert rates[2:] == pytest.approx([1e-3] * 8)
    else:
        assert all(a > b for a, b in itertools.pairwise(rates[2:]))
        assert 1e-4 < rates[9] < 3e-4
    resumed = {"lr": 0.0}
    again = LearningRate(recipe, SimpleNamespace(param_groups=[resumed]))
    again.move_to(schedule.moves)
    assert resumed["lr"] == group["lr"]
