"""Entropy controls against their formulas, worked per token in plain Python."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from aent.algorithm import entropy_controls
from aent.algorithm.entropy_controls.base import over_response
from aent.algorithm.losses import InTraining, policy_loss
from aent.algorithm.terms import LossTerms, ReferenceKl
from aent.recipe.training import AlgorithmSection
from algorithm import steps
from algorithm.steps import Step, controlled, recipe_of

LENGTHS = (3, 2, 4, 1)
N = sum(LENGTHS)
ADVANTAGES = [1.0] * 3 + [-1.0] * 2 + [0.5] * 4 + [-0.5]


def make_step(seed: int = 0) -> Step:
    """Two groups of two responses, scored."""
    samples = steps.samples(LENGTHS, (0, 0, 1, 1), (1.0, 0.0, 0.5, 0.0))
    return steps.make_step(samples, ADVANTAGES, torch.Generator().manual_seed(seed), 1.0)


def applied(step: Step, *controls: dict, number: int = 0) -> Step:
    return controlled(step, recipe_of(*controls), number)[0]


def at_response(step: Step) -> LossTerms:
    """The terms [N] of the response tokens."""
    return step.terms.at(step.batch.loss_mask.nonzero()[:, 0])


def entropies(step: Step) -> list[float]:
    return step.response(step.scores.entropies)


@pytest.mark.parametrize(("share", "kept"), [(0.2, 2), (0.21, 3), (0.001, 1), (0.99, 10)])
def test_top_entropy_tokens_keeps_the_share(share, kept):
    step = make_step()
    threshold = sorted(entropies(step))[-kept]
    weight = applied(step, {"kind": "top_entropy_tokens", "share": share}).terms.token_weight
    assert step.response(weight) == [float(h >= threshold) for h in entropies(step)]


def test_token_weights_multiply_and_leave_the_correction_alone():
    step = make_step()
    correction = over_response(step.batch, torch.full((N,), 0.5))
    half = over_response(step.batch, torch.full((N,), 0.25))
    given = step.with_terms(correction=correction, token_weight=half)
    terms = applied(given, {"kind": "top_entropy_tokens", "share": 0.3}).terms
    assert sorted(step.response(terms.token_weight)) == [0.0] * 7 + [0.25] * 3
    assert torch.equal(terms.correction, correction)
    assert torch.equal(terms.surrogate_factor, terms.token_weight / 2)
    assert torch.equal(step.with_terms(correction=correction).terms.surrogate_factor, correction)
    assert step.terms.surrogate_factor is None


def covariances(step: Step) -> list[float]:
    a, p = step.response(step.terms.advantages), step.response(step.scores.logprobs)
    return [(x - sum(a) / N) * (y - sum(p) / N) for x, y in zip(a, p)]


def test_clip_cov_drops_some_tokens_between_the_bounds():
    step = make_step(5)
    cov = covariances(step)
    between = {i for i, c in enumerate(cov) if 0.2 < c < 1}
    assert 2 < len(between) < N
    assert max(cov) > 1
    control = {"kind": "clip_cov", "share": 0.25, "low": 0.2, "high": 1.0}

    def weight(number: int) -> list[float]:
        return step.response(applied(make_step(5), control, number=number).terms.token_weight)

    seen = set()
    for number in range(30):
        drawn = weight(number)
        assert drawn == weight(number)  # a step executed again drops the same
        assert sorted(drawn) == [0.0] * 2 + [1.0] * 8  # int(0.25 * 10)
        seen |= {i for i, w in enumerate(drawn) if w == 0}
    assert seen == between


def test_clip_cov_without_candidates_drops_nothing():
    step = applied(make_step(), {"kind": "clip_cov", "low": 50, "high": 60})
    assert step.response(step.terms.token_weight) == [1.0] * N


def test_kl_cov_adds_the_distance_to_the_old_policy_where_covariance_is_highest():
    step = make_step()
    after = applied(step, {"kind": "kl_cov", "share": 0.2, "coefficient": 0.7})
    cov = covariances(step)
    highest = sorted(range(N), key=lambda i: cov[i])[-2:]
    weight = step.response(after.terms.old_kl_weight)
    assert weight == pytest.approx([0.7 if i in highest else 0.0 for i in range(N)])

    old = at_response(step).old_logprobs
    log_prob = (old + 0.1 * torch.arange(-4, 6)).requires_grad_()
    now, settings = InTraining(torch.zeros(N)), AlgorithmSection()
    plain = policy_loss(log_prob, now, at_response(step), settings).loss
    loss = policy_loss(log_prob, now, at_response(after), settings).loss
    added = torch.tensor(weight) * (log_prob - old).abs()
    torch.testing.assert_close(loss - plain, added)
    (gradient,) = torch.autograd.grad((loss - plain).sum(), log_prob)
    torch.testing.assert_close(gradient, torch.tensor(weight) * (log_prob - old).sign())


def test_entropy_advantage_adds_at_most_a_share_of_the_advantage():
    step = make_step()
    a, h = step.response(step.terms.advantages), entropies(step)
    after = applied(step, {"kind": "entropy_advantage", "scale": 0.4, "limit": 2.0})
    want = [x + min(0.4 * e, abs(x) / 2) for x, e in zip(a, h)]
    assert step.response(after.terms.advantages) == pytest.approx(want, rel=1e-5)
    assert any(x + 0.4 * e > x + abs(x) / 2 for x, e in zip(a, h))
    assert any(x + 0.4 * e < x + abs(x) / 2 for x, e in zip(a, h))


def test_response_entropy_advantage_by_hand():
    per_response = [0.2, 0.6, 0.1, 2.9]  # means of the groups: 0.4, 1.5
    step = make_step().scored(
        entropies=[h for h, n in zip(per_response, LENGTHS) for _ in range(n)]
    )
    after = applied(step, {"kind": "response_entropy_advantage"})
    factor = [1.5, 0.5, 1 + 1.4 / 1.5, 1 - 1.4 / 1.5]
    want = [a * f for a, f, n in zip((1, -1, 0.5, -0.5), factor, LENGTHS) for _ in range(n)]
    assert step.response(after.terms.advantages) == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("entropy", [0.0, 1.3])
def test_response_entropy_advantage_changes_nothing_among_equals(entropy):
    step = make_step().scored(entropies=[entropy] * N)
    after = applied(step, {"kind": "response_entropy_advantage"})
    assert step.response(after.terms.advantages) == pytest.approx(ADVANTAGES)


def test_response_entropy_advantage_never_turns_a_sign():
    step = make_step().scored(entropies=[0.1] * 3 + [0.1] * 2 + [0.0] * 4 + [9.0])
    together = replace(step.batch, group=torch.zeros(4, dtype=torch.int64))
    step = replace(step, batch=together)  # mean 2.3: the last factor would be -1.9
    after = applied(step, {"kind": "response_entropy_advantage"})
    assert step.response(after.terms.advantages)[-1] == 0


def test_advantage_clip_bounds_both_signs():
    step = make_step()
    step = step.with_terms(advantages=over_response(step.batch, torch.linspace(-2.7, 1.8, N)))
    after = applied(step, {"kind": "advantage_clip", "bound": 1.5})
    want = [-1.5, -1.5, -1.5, -1.2, -0.7, -0.2, 0.3, 0.8, 1.3, 1.5]
    assert step.response(after.terms.advantages) == pytest.approx(want)


def test_entropy_ratio_clip_gates_the_surrogate_and_not_the_reference():
    step = make_step()
    after = applied(step, {"kind": "entropy_ratio_clip", "low": 0.1, "high": 0.2})
    change = torch.tensor([0.0, -0.09, -0.11, 0.19, 0.21] * 2)
    outside = [False, False, True, False, True] * 2
    now = InTraining(torch.tensor(entropies(step)) * (1 + change))
    log_prob = at_response(step).old_logprobs.clone().requires_grad_()
    plain = policy_loss(log_prob, now, at_response(step), AlgorithmSection())
    assert not plain.clipped.any()
    kl = ReferenceKl(log_prob.detach() - 0.5, torch.full((N,), 0.3))
    given = replace(at_response(after), reference=kl)
    gated = policy_loss(log_prob, now, given, AlgorithmSection())
    kept = torch.tensor([0.0 if out else 1.0 for out in outside])
    torch.testing.assert_close(gated.loss, plain.loss * kept + 0.3 * gated.kl_reference)
    assert gated.clipped.tolist() == outside


def with_reference(step: Step) -> Step:
    weight = 0.6 * step.batch.loss_mask
    return step.with_terms(reference=ReferenceKl(step.scores.logprobs - 0.5, weight))


def test_advantage_kl_weighs_the_reference_by_what_a_response_lacks():
    step = with_reference(make_step())
    after = applied(step, {"kind": "advantage_kl"})
    each = [max(0.0, 0.6 - a) for a in ADVANTAGES]  # 0, 1.6, 0.1, 1.1
    assert step.response(after.terms.reference.weight) == pytest.approx(each)
    assert torch.equal(after.terms.reference.logprobs, step.terms.reference.logprobs)

    terms = replace(at_response(after), advantages=torch.zeros(N))
    now = InTraining(torch.zeros(N))
    loss = policy_loss(at_response(step).old_logprobs, now, terms, AlgorithmSection())
    torch.testing.assert_close(loss.loss, torch.tensor(each) * loss.kl_reference)


REQUIRED = {
    "probability_push": {"target": 1.0},
    "reroll": {"target": 1.0},
    "sample_switch": {"low": 0.5, "high": 0.7},
}
PARTS = ("nucleus_entropies", "covariances", "entropy_slopes")
NEEDY = [(kind, c.needs) for kind, c in entropy_controls.CONTROLS.items() if c.needs is not None]


@pytest.mark.parametrize(("kind", "needed"), NEEDY)
def test_a_step_that_was_not_scored_is_refused(kind, needed):
    step = make_step()
    less = None if needed == "scores" else replace(step.scores, **dict.fromkeys(PARTS))
    step = replace(step, scores=less)
    with pytest.raises(ValueError, match=rf"{kind}.*\b{needed}\b"):
        applied(step, {"kind": kind} | REQUIRED.get(kind, {}))


def test_controls_are_applied_in_their_order():
    token, whole = {"kind": "entropy_advantage"}, {"kind": "response_entropy_advantage"}
    both = applied(make_step(), token, whole).terms.advantages
    assert torch.equal(both, applied(applied(make_step(), token), whole).terms.advantages)
    assert not torch.equal(both, applied(make_step(), whole, token).terms.advantages)


@pytest.mark.parametrize("kind", [k for k, c in entropy_controls.CONTROLS.items() if c.apply])
def test_a_control_writes_into_nothing(kind):
    step = with_reference(make_step())
    before = copy.deepcopy(step)
    applied(step, {"kind": kind} | REQUIRED.get(kind, {}))
    assert str(step) == str(before)
