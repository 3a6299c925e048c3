"""Controls of the bonus and of the loss that remember earlier steps, against their formulas in
plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from aent.algorithm.losses import InTraining, entropy_bonus, policy_loss
from aent.recipe.training import AlgorithmSection
from algorithm import steps
from algorithm.steps import Step, controlled, recipe_of

LENGTHS, GROUPS, REWARDS = (5, 2, 4, 1), (0, 0, 1, 1), (1.0, 0.0, 0.25, 0.25)
N = sum(LENGTHS)


def make_step(seed: int = 0, temperature: float = 1.0) -> Step:
    g = torch.Generator().manual_seed(seed)
    samples = steps.samples(LENGTHS, GROUPS, REWARDS)
    return steps.make_step(samples, torch.randn(N, generator=g).tolist(), g, temperature)


def steps_of(recipe, count: int, make: Callable[[int, float], Step] = make_step):
    return steps.steps_of(recipe, count, make)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# -- EPO


def test_entropy_smoothing_takes_epos_penalty_from_the_bonus():
    control = {"kind": "entropy_smoothing", "strength": 0.1, "low": 0.5, "high": 1.5, "growth": 3}
    seen = [step for step, _ in steps_of(recipe_of(control), 3)]
    assert seen[0].terms.smoothing is None  # nothing at the first step
    means = [mean(step.response(step.scores.entropies)) for step in seen]
    bar = mean(means[:2])
    beta = 1 + math.exp(-3 * 2 / 5)
    h = torch.linspace(0, 2.5, N, dtype=torch.float64).requires_grad_()
    smoothing = seen[2].terms.smoothing.at(seen[2].batch.loss_mask.nonzero()[:, 0])
    got = entropy_bonus(h, smoothing.mapped(token=torch.Tensor.double))
    want = h - beta * 0.1 * (torch.relu(0.5 * bar - h) + torch.relu(h - 1.5 * bar))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    slopes = set(torch.autograd.grad(got.sum(), h)[0].round(decimals=5).tolist())
    assert slopes == {1.0, round(1 + 0.1 * beta, 5), round(1 - 0.1 * beta, 5)}


# -- AER


def test_difficulty_coefficient_weighs_the_bonus_by_what_a_prompt_lacks():
    recipe = recipe_of({"kind": "difficulty_coefficient"})
    ((step, _),) = steps_of(recipe, 1)
    weight = step.response(step.terms.entropy_weight)
    assert weight == pytest.approx([0.5 / N] * 7 + [0.75 / N] * 5)


def test_rewards_of_ones_own_do_not_turn_the_bonus_into_a_penalty():
    """Means of 3 and -1 count as 1 and 0."""
    g = torch.Generator().manual_seed(0)
    samples = steps.samples(LENGTHS, GROUPS, (4.0, 2.0, -1.0, -1.0))
    step = steps.make_step(samples, [0.0] * N, g, 1.0)
    step, _ = controlled(step, recipe_of({"kind": "difficulty_coefficient"}))
    assert step.response(step.terms.entropy_weight) == pytest.approx([0.0] * 7 + [1 / N] * 5)


# -- EntroPIC


def test_probability_push_is_a_pi_controller_over_likely_tokens():
    control = {
        "kind": "probability_push", "target": 1.0, "proportional_gain": 2, "integral_gain": 0.5,
        "probability": 0.6,
    }  # fmt: skip
    integral = 0.0
    for step, memory in steps_of(recipe_of(control), 4):
        error = mean(step.response(step.scores.entropies)) - 1.0
        push = min(max(2 * error + 0.5 * integral, -1), 1)
        integral += error
        assert memory["probability_push"]["push"] == pytest.approx(push)
        assert memory["probability_push"]["integral"] == pytest.approx(integral)

        likely = [p > math.log(0.6) for p in step.response(step.scores.logprobs)]
        assert 0 < sum(likely) < N
        terms = step.terms.at(step.batch.loss_mask.nonzero()[:, 0])
        log_prob = (terms.old_logprobs + torch.linspace(-0.2, 0.2, N)).requires_grad_()
        now = InTraining(torch.zeros(N))
        with_push, without = (
            policy_loss(log_prob, now, given, AlgorithmSection()).loss
            for given in (terms, replace(terms, ratio_weight=None))
        )
        added = (terms.policy_weight * (with_push - without)).sum()
        ratio = (log_prob - terms.old_logprobs).exp()
        want = push * (-ratio * terms.advantages.abs())[torch.tensor(likely)].mean()
        torch.testing.assert_close(added, want, rtol=1e-4, atol=1e-6)
        (slope,) = torch.autograd.grad(added, log_prob)
        torch.testing.assert_close(slope, torch.autograd.grad(want, log_prob)[0])


def test_probability_push_is_bounded_and_needs_likely_tokens():
    control = {"kind": "probability_push", "target": 9.0, "probability": 0.999}
    ((step, memory),) = steps_of(recipe_of(control), 1)
    assert memory["probability_push"]["push"] == -1
    assert step.terms.ratio_weight is None


# -- SIREN


def test_nucleus_anchor_is_the_gradient_of_the_square():
    """Against autograd on coefficient (M - anchor)^2, M written from the formula."""
    control = {"kind": "nucleus_anchor", "share": 0.3, "coefficient": 0.7}
    recipe = recipe_of(control)
    (first, memory), (second, _) = steps_of(recipe, 2)
    assert not first.terms.nucleus_weight.any()

    def measure(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        h = step.scores.nucleus_entropies[step.batch.loss_mask].double().requires_grad_()
        means = []
        # above the 0.7 quantile, at 0.7 (n - 1) of n sorted tokens: 2, 1, 1, 0 of them
        for part, count in zip(h.split(list(LENGTHS)), (2, 1, 1, 0)):
            highest = part.sort(descending=True).values[:count]
            means.append(highest.mean() if count else torch.zeros(()))
        return h, torch.stack(means).mean()

    anchor = float(measure(first)[1])
    assert memory["nucleus_anchor"]["anchor"] == pytest.approx(anchor)
    h, m = measure(second)
    (want,) = torch.autograd.grad(0.7 * (m - anchor) ** 2, h)
    got = second.terms.nucleus_weight[second.batch.loss_mask].double()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)
    assert want.count_nonzero() == 4
    in_halves = recipe_of(control, trainer={"mini_batches": 2})
    halved, _ = controlled(make_step(1), in_halves, 1, memory)
    got = halved.terms.nucleus_weight[halved.batch.loss_mask].double()
    torch.testing.assert_close(got, 2 * want, rtol=1e-5, atol=1e-8)  # of two responses each


# -- what they keep


def test_what_is_kept_is_forgotten_with_its_control():
    ((step, memory),) = steps_of(recipe_of({"kind": "probability_push", "target": 1.0}), 1)
    assert controlled(step, recipe_of(), 1, memory)[1] == {}
