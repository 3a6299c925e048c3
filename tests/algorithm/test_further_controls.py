"""Entropy controls published in 2025 and 2026, against their formulas in plain Python."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import pytest
import torch

from aent.algorithm.entropy_controls.base import over_response
from aent.algorithm.losses import InTraining, policy_loss
from aent.recipe.training import AlgorithmSection
from algorithm import steps
from algorithm.steps import Step, controlled, recipe_of
from algorithm.test_entropy_controls import ADVANTAGES, N, applied, at_response, make_step


def held_at(entropy: float) -> Step:
    """A step with this mean entropy."""
    return make_step().scored(entropies=[entropy] * N)


# -- Entrocraft


@pytest.mark.parametrize(
    ("entropy", "number", "kept"),
    [
        (0.75, 0, lambda a: a > 0),
        (0.45, 0, lambda a: a < 0),
        (0.6, 0, lambda a: True),
        (0.6, 9, lambda a: a > 0),  # the band has come from [0.5, 0.7] to [0.25, 0.35]
        (0.3, 9, lambda a: True),
    ],
)
def test_sample_switch_lets_one_sign_learn_outside_the_band(entropy, number, kept):
    control = {"kind": "sample_switch", "low": 0.5, "high": 0.7, "anneal_to": 0.5}
    step = applied(held_at(entropy), control, number=number)
    assert step.response(step.terms.token_weight) == [float(kept(a)) for a in ADVANTAGES]


# -- STARE


def test_surprise_boost_multiplies_the_least_likely_of_each_sign():
    """Of seven tokens with A > 0 the two least likely, of three with A < 0 one."""
    logprobs = [-0.1, -2.0, -0.3, -0.5, -1.5, -0.2, -2.5, -0.9, -1.0, -0.7]
    control = {"kind": "surprise_boost", "share": 0.2, "positive": 1.1, "negative": 0.9}
    step = applied(held_at(0.2).scored(logprobs=logprobs), control)
    want = list(ADVANTAGES)
    for place, factor in ((1, 1.1), (6, 1.1), (4, 0.9)):
        want[place] *= factor
    assert step.response(step.terms.advantages) == pytest.approx(want)


def test_surprise_boost_does_nothing_at_enough_entropy():
    step = applied(held_at(0.31), {"kind": "surprise_boost"})
    assert step.response(step.terms.advantages) == ADVANTAGES
    alone = held_at(0.1).with_terms(
        advantages=over_response(held_at(0.1).batch, torch.full((N,), -1.0))
    )
    unmoved = applied(alone, {"kind": "surprise_boost"})  # no token with A > 0
    assert unmoved.response(unmoved.terms.advantages) == [-1.0] * N


# -- STEER


def test_entropy_change_weight_is_exponential_in_what_the_token_would_change():
    control = {"kind": "entropy_change_weight", "strength": 0.3, "least": 0.8}
    step = make_step()
    got = applied(step, control)
    values = zip(
        step.response(step.scores.logprobs), step.response(step.scores.entropies), ADVANTAGES
    )
    want = [
        max(0.8, math.exp(-0.3 * abs(a / math.exp(p) * math.exp(p) * (1 - math.exp(p)) * (p + h))))
        for p, h, a in values
    ]
    assert 0.8 in want
    assert max(want) > 0.9
    assert got.response(got.terms.token_weight) == pytest.approx(want, rel=1e-5)


# -- Clip_B


def test_entropy_change_mask_drops_outliers():
    step = make_step()
    pairs = list(zip(step.response(step.scores.logprobs), step.response(step.scores.entropies)))
    change = [math.exp(p) * (h + p) for p, h in pairs]
    mean, spread = fmean(change), pstdev(change)
    want = [float(abs(s - mean) < 1.2 * spread) for s in change]
    assert 0 < want.count(0.0) < N
    got = applied(step, {"kind": "entropy_change_mask", "deviations": 1.2})
    assert got.response(got.terms.token_weight) == want
    flat = step.scored(entropies=[0.5] * N, logprobs=[-0.5] * N)
    same = applied(flat, {"kind": "entropy_change_mask"})
    assert same.response(same.terms.token_weight) == [1.0] * N


def test_what_a_token_takes_from_the_entropy_is_its_derivative():
    """d H / d z_y of random logits, by autograd."""
    z = torch.randn(6, dtype=torch.float64, requires_grad=True)
    log_p = z.log_softmax(0)
    entropy = -(log_p.exp() * log_p).sum()
    (slope,) = torch.autograd.grad(entropy, z)
    change = log_p.exp() * (log_p + entropy)
    torch.testing.assert_close(change.detach(), -slope)


# -- QAE


@pytest.mark.parametrize(
    ("rewards", "baseline"),
    [
        ((1, 0, 0, 0, 0), 0),  # few right: only they have an advantage
        ((1, 1, 1, 0, 0), 0),  # a share of 1 - K right still
        ((1, 1, 1, 1, 0), 1),  # more right: only the wrong one has
        ((1, 1, 1, 1, 1), 1),
    ],
)
def test_quantile_baseline_of_right_and_wrong(rewards, baseline):
    from aent.algorithm.mini_batches import loss_terms

    samples = steps.samples((2, 1, 3, 1, 2), (0,) * 5, [float(r) for r in rewards])
    recipe = recipe_of({"kind": "quantile_baseline", "quantile": 0.4}, algorithm={})
    step = steps.make_step(samples, [0.0] * 9, torch.Generator(), 1.0)
    plain = Step(step.batch, step.scores, loss_terms(step.batch, step.scores, None, recipe))
    got, _ = controlled(plain, recipe)
    mean = fmean(rewards)
    spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4) + 1e-6
    per_response = [(r - baseline) / spread for r in rewards]
    if len(set(rewards)) == 1:
        per_response = [0.0] * 5
    want = [a for a, n in zip(per_response, (2, 1, 3, 1, 2)) for _ in range(n)]
    assert got.response(got.terms.advantages) == pytest.approx(want, rel=1e-4, abs=1e-6)


# -- CE-GPPO


def test_kept_gradient_is_that_at_the_bound_times_its_share():
    step = applied(make_step(), {"kind": "kept_gradient", "low": 0.25, "high": 0.5})
    terms = at_response(step)
    ratio = torch.tensor([1.5, 1.1, 0.5, 0.5, 0.9, 1.6, 0.6, 1.0, 1.4, 0.3])
    log_prob = (terms.old_logprobs + ratio.log()).requires_grad_()
    settings = AlgorithmSection(clip_low=0.2, clip_high=0.3)
    found = policy_loss(log_prob, InTraining(torch.zeros(N)), terms, settings)
    (slope,) = torch.autograd.grad(found.loss.sum(), log_prob)
    for place, (r, a) in enumerate(zip(ratio.tolist(), ADVANTAGES)):
        if a > 0 and r > 1.3:
            want = 0.5 * 1.3 * a
        elif a < 0 and r < 0.8:
            want = 0.25 * 0.8 * a
        else:
            want = r * a
        assert slope[place].item() == pytest.approx(-want, rel=1e-5)
        assert found.loss[place].item() == pytest.approx(-want, rel=1e-5)
    assert found.clipped.sum() == 5


# -- Lp-Reg


def test_low_probability_kl_weighs_the_least_likely_of_those_with_a_negative_advantage():
    """Of three tokens with A < 0 two thirds; places 4 and 9, the least likely ones of them."""
    logprobs = [-0.1, -9.0, -0.3, -0.5, -2.5, -0.2, -8.0, -0.9, -1.0, -1.7]
    step = make_step().scored(logprobs=logprobs)
    control = {"kind": "low_probability_kl", "share": 0.67, "coefficient": 0.5}
    got = applied(step, control)
    weight = got.response(got.terms.policy_weight)
    want = [0.5 * w if place in (4, 9) else 0.0 for place, w in enumerate(weight)]
    assert got.response(got.terms.proxy_weight) == pytest.approx(want)
    few = applied(step, {"kind": "low_probability_kl"})  # a hundredth: one at least
    assert few.terms.proxy_weight.count_nonzero() == 1
    alone = step.with_terms(advantages=over_response(step.batch, torch.ones(N)))
    assert not applied(alone, control).terms.proxy_weight.any()


# -- exact covariances


def test_exact_changes_are_the_advantage_times_the_covariance():
    step = make_step()
    c, a = step.response(step.scores.covariances), ADVANTAGES

    def weight(**control: object) -> list[float]:
        got = applied(step, control)
        return got.response(got.terms.token_weight)

    want = [max(0.5, math.exp(-2 * abs(x * y))) for x, y in zip(a, c)]
    steer = weight(kind="entropy_change_weight", strength=2, least=0.5, exact=True)
    assert steer == pytest.approx(want, rel=1e-5)

    falls = [-x * y for x, y in zip(a, c)]
    low, high = sorted(falls)[4], sorted(falls)[8]
    cut = weight(kind="clip_cov", share=1 - 1e-9, low=low - 1e-6, high=high - 1e-6, exact=True)
    assert cut == [float(not low - 1e-6 < f < high - 1e-6) for f in falls]

    mean, spread = fmean(c), pstdev(c)
    mask = weight(kind="entropy_change_mask", deviations=1.2, exact=True)
    assert mask == [float(abs(x - mean) < 1.2 * spread) for x in c]
    assert 0 < mask.count(0.0) < N


@pytest.mark.parametrize("spend", [0.0, 0.5, 1.0, 50.0])
def test_entropy_budget_spends_no_more_than_it_is_given(spend):
    """Its factor makes the falls, added up, ``spend`` times the rises: changes of the step's mean
    entropy under the policy loss's gradient."""
    half = over_response(make_step().batch, torch.linspace(0.2, 1.0, N))
    step = make_step().with_terms(token_weight=half)
    got, kept = controlled(step, recipe_of({"kind": "entropy_budget", "spend": spend}))
    kept = kept["entropy_budget"]
    terms, scores = at_response(step), step.scores
    c, slope = step.response(scores.covariances), step.response(scores.entropy_slopes)
    of_mean, of_loss = terms.entropy_weight.tolist(), terms.policy_weight.tolist()
    change = [
        m * p * w * a * x
        for m, p, w, a, x in zip(of_mean, of_loss, terms.token_weight.tolist(), ADVANTAGES, c)
    ]
    raised, lowered = sum(x for x in change if x > 0), -sum(x for x in change if x < 0)
    assert raised > 0 < lowered
    factor = min(1.0, spend * raised / lowered)
    assert kept["raised"] == pytest.approx(raised, rel=1e-5)
    assert kept["lowered"] == pytest.approx(lowered, rel=1e-5)
    assert kept["factor"] == pytest.approx(factor, rel=1e-5)
    assert kept["bonus"] == pytest.approx(sum(m * m * s for m, s in zip(of_mean, slope)), rel=1e-5)
    halves = recipe_of({"kind": "entropy_budget", "spend": spend}, trainer={"mini_batches": 2})
    _, by_half = controlled(step, halves)  # a mean over mini-batches, as gradient/ has it
    assert by_half["entropy_budget"]["raised"] == pytest.approx(raised / 2, rel=1e-5)
    assert by_half["entropy_budget"]["factor"] == pytest.approx(factor, rel=1e-5)
    before, after = step.response(half), got.response(got.terms.token_weight)
    for x, w, then in zip(change, before, after):
        assert then == pytest.approx(w * (factor if x < 0 else 1), rel=1e-5, abs=1e-9)


def test_entropy_budget_leaves_a_step_alone_that_lowers_nothing():
    step = make_step()
    given = step.scored(covariances=[math.copysign(0.1, a) for a in ADVANTAGES])
    got, kept = controlled(given, recipe_of({"kind": "entropy_budget"}))
    assert kept["entropy_budget"]["factor"] == 1
    assert got.response(got.terms.token_weight) == [1.0] * N
