"""The policy losses against their formulas, computed by hand in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from aent.algorithm.losses import InTraining, policy_loss, sequence_log_ratio
from aent.algorithm.terms import EntropyGate, LossTerms, ReferenceKl
from aent.recipe.training import AlgorithmSection

LOG_PROB = [-0.5, -1.0, -2.0, -0.1, -3.0, -0.7]
OLD = [-0.7, -0.9, -0.5, -0.8, -1.0, -0.7]
ADVANTAGE = [1.0, -1.0, 2.0, 1.5, -2.0, 0.0]


NOW = InTraining(torch.zeros(6))


def terms(old: list[float] | None = OLD, **others: list[float]) -> LossTerms:
    values = {"advantages": ADVANTAGE} | ({} if old is None else {"old_logprobs": old}) | others
    ones = torch.ones(len(LOG_PROB))
    given = {name: torch.tensor(value) for name, value in values.items()}
    return LossTerms(policy_weight=ones, entropy_weight=ones, **given)


def reference(weight: float, logprobs: list[float] = OLD) -> ReferenceKl:
    return ReferenceKl(torch.tensor(logprobs), torch.full((len(logprobs),), weight))


def by_hand(i: int, s: AlgorithmSection) -> tuple[float, float]:
    """(loss, d loss / d log_prob) of token i."""
    r, a = math.exp(LOG_PROB[i] - OLD[i]), ADVANTAGE[i]
    inside = 1 - s.clip_low <= r <= 1 + s.clip_high
    surrogate, clipped = r * a, min(max(r, 1 - s.clip_low), 1 + s.clip_high) * a
    loss = -min(surrogate, clipped)
    gradient = -r * a if inside or surrogate < clipped else 0.0
    if s.dual_clip is not None and a < 0 and loss > -s.dual_clip * a:
        loss, gradient = -s.dual_clip * a, 0.0
    return loss, gradient


@pytest.mark.parametrize(
    "settings",
    [
        AlgorithmSection(),
        AlgorithmSection(clip_low=0.1, clip_high=0.5),
        AlgorithmSection(dual_clip=1.05),
    ],
)
def test_clipped_surrogate_value_and_gradient(settings):
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    result = policy_loss(log_prob, NOW, terms(), settings)
    result.loss.sum().backward()
    for i in range(len(LOG_PROB)):
        loss, gradient = by_hand(i, settings)
        assert result.loss[i].item() == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert log_prob.grad[i].item() == pytest.approx(gradient, rel=1e-5, abs=1e-7)
        cut = gradient == 0 and ADVANTAGE[i] != 0
        assert bool(result.clipped[i]) == cut


def test_dual_clip_really_cuts_in_its_test():
    settings = AlgorithmSection(dual_clip=1.05, clip_high=10)
    result = policy_loss(torch.tensor([0.0]), NOW, terms([-1.0], advantages=[-1.0]), settings)
    assert result.loss.item() == pytest.approx(1.05)
    assert result.clipped.item()


def test_without_old_logprobs_the_ratio_is_one_and_the_gradient_is_minus_the_advantage():
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    result = policy_loss(log_prob, NOW, terms(None), AlgorithmSection())
    result.loss.sum().backward()
    assert torch.equal(result.loss.detach(), -torch.tensor(ADVANTAGE))
    assert torch.equal(log_prob.grad, -torch.tensor(ADVANTAGE))
    assert not result.clipped.any()


def test_kl_to_the_reference_is_k3_with_its_gradient():
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    given = replace(terms(None, advantages=[0.0] * len(LOG_PROB)), reference=reference(0.3))
    result = policy_loss(log_prob, NOW, given, AlgorithmSection())
    result.loss.sum().backward()
    for i, (p, q) in enumerate(zip(LOG_PROB, OLD)):
        k3 = math.exp(q - p) - (q - p) - 1
        assert result.kl_reference[i].item() == pytest.approx(k3, rel=1e-5, abs=1e-7)
        assert result.loss[i].item() == pytest.approx(0.3 * k3, rel=1e-5, abs=1e-7)
        expected = 0.3 * (1 - math.exp(q - p))
        assert log_prob.grad[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_correction_and_token_weight_scale_the_surrogate_only():
    correction, token_weight = [0.0, 0.5, 1.0, 2.0, 1.0, 1.5], [1.0, 1.0, 0.0, 0.5, 1.0, 2.0]
    log_prob, settings = torch.tensor(LOG_PROB), AlgorithmSection()
    plain = policy_loss(log_prob, NOW, terms(), settings).loss

    def weighted(**factors: list[float]) -> torch.Tensor:
        given = replace(terms(**factors), reference=reference(0.5))
        result = policy_loss(log_prob, NOW, given, settings)
        return result.loss - 0.5 * result.kl_reference

    one, other = torch.tensor(correction), torch.tensor(token_weight)
    torch.testing.assert_close(weighted(correction=correction), plain * one)
    torch.testing.assert_close(weighted(token_weight=token_weight), plain * other)
    both = weighted(correction=correction, token_weight=token_weight)
    torch.testing.assert_close(both, plain * one * other)


@pytest.mark.parametrize("clip_low", [0.2, 1.0])
def test_cispo_clips_the_weight_and_no_gradient(clip_low):
    settings = AlgorithmSection(policy_loss="cispo", clip_low=clip_low, clip_high=0.3)
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    result = policy_loss(log_prob, NOW, terms(), settings)
    result.loss.sum().backward()
    for i, (p, q, a) in enumerate(zip(LOG_PROB, OLD, ADVANTAGE)):
        weight = min(max(math.exp(p - q), 1 - clip_low), 1.3)
        assert result.loss[i].item() == pytest.approx(-weight * a * p, rel=1e-5, abs=1e-7)
        assert log_prob.grad[i].item() == pytest.approx(-weight * a, rel=1e-5, abs=1e-7)
        assert bool(result.clipped[i]) == (weight != math.exp(p - q))


SEQUENCE = torch.tensor([0, 1, 1, 0, 2, 1])  # tokens of a response need not be neighbors


def gspo_objective(log_prob: torch.Tensor, advantage: list[float], s: AlgorithmSection):
    """The sum over responses of the paper's eq. 5, by the ratio of whole responses (eq. 7)."""
    total = torch.zeros(())
    for i, a in enumerate(advantage):
        chosen = torch.tensor([n for n, j in enumerate(SEQUENCE.tolist()) if j == i])
        ratio = (log_prob[chosen] - torch.tensor(OLD)[chosen]).mean().exp()
        bounded = ratio.clamp(1 - s.clip_low, 1 + s.clip_high)
        total = total + torch.minimum(ratio * a, bounded * a)
    return total


@pytest.mark.parametrize(
    ("advantage", "clip_low", "clipped"),
    [
        ([1.0, -0.5, 2.0], 0.1, [0, 1]),
        ([-1.0, 0.5, -2.0], 0.1, [2]),
        ([-1.0, 0.5, -2.0], 0.9, []),
    ],
)
def test_gspo_is_the_papers_sequence_objective(advantage, clip_low, clipped):
    """Value and gradient, though written per token (ratios of the responses: 1.56, 0.6, 0.14)."""
    settings = AlgorithmSection(
        policy_loss="gspo", aggregation="sequence_mean", clip_low=clip_low, clip_high=0.3
    )
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    given = terms(advantages=[advantage[i] for i in SEQUENCE.tolist()])
    lengths = torch.bincount(SEQUENCE)
    ratio = sequence_log_ratio(log_prob, given.old_logprobs, SEQUENCE, lengths)
    result = policy_loss(log_prob, InTraining(torch.zeros(6), ratio), given, settings)
    loss = (result.loss / lengths[SEQUENCE]).sum()  # sequence_mean, times the number of responses
    (gradient,) = torch.autograd.grad(loss, log_prob)
    want = -gspo_objective(log_prob, advantage, settings)
    (wanted,) = torch.autograd.grad(want, log_prob)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(gradient, wanted)
    assert SEQUENCE[wanted == 0].unique().tolist() == clipped
    assert SEQUENCE[result.clipped].unique().tolist() == clipped


def test_gspo_without_old_logprobs_is_at_ratio_one():
    settings = AlgorithmSection(policy_loss="gspo", aggregation="sequence_mean")
    loss = policy_loss(torch.tensor(LOG_PROB), NOW, terms(None), settings).loss
    assert torch.equal(loss, -torch.tensor(ADVANTAGE))


# what a mini-batch has beside its ordinary tokens
EXTREME = {
    "reference": (AlgorithmSection(), {"reference": 95.0}),
    "old": (AlgorithmSection(), {"old_logprobs": -95.0}),
    "old, dual clip": (AlgorithmSection(dual_clip=3.0), {"old_logprobs": -95.0}),
    "old, cispo": (AlgorithmSection(policy_loss="cispo", clip_low=1), {"old_logprobs": -95.0}),
    "old, never sampled": (AlgorithmSection(), {"old_logprobs": -math.inf}),
    "ratio_weight": (AlgorithmSection(), {"old_logprobs": -95.0, "ratio_weight": 0.5}),
}


@pytest.mark.parametrize("case", EXTREME)
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_one_extreme_token_leaves_every_gradient_finite_and_the_others_as_they_are(case, advantage):
    settings, extreme = EXTREME[case]

    def given(**third: float) -> LossTerms:
        """Six ordinary tokens, the third of them changed."""
        ordinary = {"advantages": ADVANTAGE}
        ordinary |= {n: [0.5 if n == "ratio_weight" else -0.7] * 6 for n in extreme}
        values = {n: [*v[:2], third.get(n, v[2]), *v[3:]] for n, v in ordinary.items()}
        kl = reference(0.01, values.pop("reference")) if "reference" in values else None
        return replace(terms(values.pop("old_logprobs", None), **values), reference=kl)

    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    policy_loss(log_prob, NOW, given(), settings).loss.sum().backward()
    expected, log_prob.grad = log_prob.grad, None
    loss = policy_loss(log_prob, NOW, given(advantages=advantage, **extreme), settings).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert log_prob.grad.isfinite().all()
    others = torch.arange(6) != 2
    assert torch.equal(log_prob.grad[others], expected[others])


@pytest.mark.parametrize("old", [-95.0, -math.inf, math.nan])
@pytest.mark.parametrize("kind", ["ppo_clip", "cispo"])
@pytest.mark.parametrize("other", ["", "old_kl_weight", "ratio_weight"])
@pytest.mark.parametrize("mask", ["correction", "token_weight", "entropy_gate"])
def test_a_masked_token_contributes_exactly_nothing(mask, other, kind, old):
    """A token without a surrogate may have other terms: here with a weight of 0 too."""
    weight = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    others = {name: weight for name in (mask, other) if name not in ("", "entropy_gate")}
    given = terms([old, *OLD[1:]], advantages=[-3.0, *ADVANTAGE[1:]], **others)
    now = InTraining(torch.tensor(weight))
    if mask == "entropy_gate":
        given = replace(given, entropy_gate=EntropyGate(torch.full((6,), 0.5), now.entropy + 1))
    loss = policy_loss(log_prob, now, given, AlgorithmSection(policy_loss=kind)).loss
    loss.sum().backward()
    assert loss[0].item() == 0
    assert log_prob.grad[0].item() == 0
    assert log_prob.grad.isfinite().all()
    assert (log_prob.grad[1:] != 0).any()
