"""Controls of the bonus and of the loss that remember earlier steps, against their formulas in
plain Python."""

from __future__ import annotations

import json
import math

import pytest
import torch

from aent.algorithm import aggregation, entropy_controls, terms
from aent.algorithm.entropy_controls import Memory
from aent.algorithm.entropy_controls.base import over_response
from aent.algorithm.losses import entropy_bonus, policy_loss
from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.recipe.schema import AlgorithmSection, Recipe

LENGTHS, GROUPS, REWARDS = (5, 2, 4, 1), (0, 0, 1, 1), (1.0, 0.0, 0.25, 0.25)
N = sum(LENGTHS)


def recipe_of(*controls: dict, **sections) -> Recipe:
    values = {
        "name": "x",
        "steps": 10,
        "model": {"path": "none"},
        "controller": {"initial": 0.1},
        "entropy_controls": controls,
    }
    return Recipe.model_validate(values | sections)


def make_batch(seed: int = 0) -> Batch:
    samples = [
        Sample([5, 6], [1] * n, [-0.5] * n, [0] * n, "stop", g, g, r)
        for n, g, r in zip(LENGTHS, GROUPS, REWARDS)
    ]
    batch = Batch.from_samples(samples)
    g = torch.Generator().manual_seed(seed)
    batch.advantages = over_response(batch, torch.randn(N, generator=g))
    batch.old_logprobs = over_response(batch, -torch.rand(N, generator=g))
    batch.old_entropies = over_response(batch, 2 * torch.rand(N, generator=g))
    batch.old_nucleus_entropies = over_response(batch, torch.rand(N, generator=g))
    return batch


def through_json(memory: Memory) -> Memory:
    """As a checkpoint has it."""
    return json.loads(json.dumps(memory))


def steps_of(recipe: Recipe, count: int, change=None) -> list[tuple[Batch, Memory]]:
    """The batch of each step after its controls, and what they then keep, through checkpoints."""
    out, memory = [], {}
    for step in range(count):
        batch = make_batch(step)
        if change is not None:
            change(step, batch)
        memory = through_json(entropy_controls.apply(batch, recipe, step, 100, memory))
        out.append((batch, memory))
    return out


def response(batch: Batch, values: torch.Tensor) -> list[float]:
    assert not values[~batch.loss_mask].any()
    return values[batch.loss_mask].tolist()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# -- EPO


def test_entropy_smoothing_takes_epos_penalty_from_the_bonus():
    control = {"kind": "entropy_smoothing", "strength": 0.1, "low": 0.5, "high": 1.5, "growth": 3}
    steps = steps_of(recipe_of(control), 3)
    assert steps[0][0].smoothing_weight is None  # nothing at the first step
    means = [mean(response(b, b.old_entropies)) for b, _ in steps]
    batch = steps[2][0]
    bar = mean(means[:2])
    beta = 1 + math.exp(-3 * 2 / 5)
    h = torch.linspace(0, 2.5, N, dtype=torch.float64).requires_grad_()
    fields = {
        name: getattr(batch, name)[batch.loss_mask].double()
        for name in ("smoothing_weight", "smoothing_low", "smoothing_high")
    }
    got = entropy_bonus(h, fields)
    want = h - beta * 0.1 * (torch.relu(0.5 * bar - h) + torch.relu(h - 1.5 * bar))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    slopes = set(torch.autograd.grad(got.sum(), h)[0].round(decimals=5).tolist())
    assert slopes == {1.0, round(1 + 0.1 * beta, 5), round(1 - 0.1 * beta, 5)}


# -- AER


def test_difficulty_coefficient_weighs_the_bonus_by_what_a_prompt_lacks():
    recipe = recipe_of({"kind": "difficulty_coefficient"}, trainer={"mini_batches": 2})
    ((batch, _),) = steps_of(recipe, 1)
    assert response(batch, batch.entropy_factor) == [0.5] * 7 + [0.75] * 5
    first, second = terms.split_mini_batches(batch, recipe)
    assert first.entropy_weight.sum().item() == pytest.approx(0.5)
    assert second.entropy_weight.sum().item() == pytest.approx(0.75)


# -- EntroPIC


def test_probability_push_is_a_pi_controller_over_likely_tokens():
    control = {
        "kind": "probability_push", "target": 1.0, "proportional_gain": 2, "integral_gain": 0.5,
        "probability": 0.6,
    }  # fmt: skip
    integral = 0.0
    for batch, memory in steps_of(recipe_of(control), 4):
        error = mean(response(batch, batch.old_entropies)) - 1.0
        push = min(max(2 * error + 0.5 * integral, -1), 1)
        integral += error
        assert memory["probability_push"]["push"] == pytest.approx(push)
        assert memory["probability_push"]["integral"] == pytest.approx(integral)

        likely = [p > math.log(0.6) for p in response(batch, batch.old_logprobs)]
        assert 0 < sum(likely) < N
        mask = batch.loss_mask
        log_prob = (batch.old_logprobs[mask] + torch.linspace(-0.2, 0.2, N)).requires_grad_()
        fields = {n: getattr(batch, n)[mask] for n in ("advantages", "old_logprobs")}
        plain = policy_loss(log_prob, fields, AlgorithmSection()).loss
        fields["ratio_weight"] = batch.ratio_weight[mask]
        weight = aggregation.token_mean(batch)[mask]
        added = (weight * (policy_loss(log_prob, fields, AlgorithmSection()).loss - plain)).sum()
        ratio = (log_prob - batch.old_logprobs[mask]).exp()
        chosen = torch.tensor(likely)
        want = push * (-ratio * batch.advantages[mask].abs())[chosen].mean()
        torch.testing.assert_close(added, want, rtol=1e-4, atol=1e-6)
        (slope,) = torch.autograd.grad(added, log_prob)
        torch.testing.assert_close(slope, torch.autograd.grad(want, log_prob)[0])


def test_probability_push_is_bounded_and_needs_likely_tokens():
    control = {"kind": "probability_push", "target": 9.0, "probability": 0.999}
    ((batch, memory),) = steps_of(recipe_of(control), 1)
    assert memory["probability_push"]["push"] == -1
    assert batch.ratio_weight is None


# -- SIREN


def test_nucleus_anchor_is_the_gradient_of_the_square():
    """Against autograd on coefficient (M - anchor)^2, M written from the formula."""
    control = {"kind": "nucleus_anchor", "share": 0.3, "coefficient": 0.7}
    recipe = recipe_of(control)
    (first, memory), (batch, _) = steps_of(recipe, 2)
    assert not first.nucleus_weight.any()

    def measure(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        h = batch.old_nucleus_entropies[batch.loss_mask].double().requires_grad_()
        means = []
        # above the .7 quantile, which lies at .7 (n - 1) of n sorted tokens: 2, 1, 1, 0 of them
        for part, count in zip(h.split(list(LENGTHS)), (2, 1, 1, 0)):
            highest = part.sort(descending=True).values[:count]
            means.append(highest.mean() if count else torch.zeros(()))
        return h, torch.stack(means).mean()

    anchor = float(measure(first)[1])
    assert memory["nucleus_anchor"]["anchor"] == pytest.approx(anchor)
    h, m = measure(batch)
    (want,) = torch.autograd.grad(0.7 * (m - anchor) ** 2, h)
    (mini,) = terms.split_mini_batches(batch, recipe)
    got = mini.nucleus_weight[mini.loss_mask].double()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)
    assert want.count_nonzero() == 4
    halves = terms.split_mini_batches(batch, recipe_of(control, trainer={"mini_batches": 2}))
    got = torch.cat([half.nucleus_weight[half.loss_mask] for half in halves]).double()
    torch.testing.assert_close(got, 2 * want, rtol=1e-5, atol=1e-8)  # of two responses each


# -- what they keep


def test_what_is_kept_is_forgotten_with_its_control():
    ((batch, memory),) = steps_of(recipe_of({"kind": "probability_push", "target": 1.0}), 1)
    assert entropy_controls.apply(batch, recipe_of(), 1, 100, memory) == {}
