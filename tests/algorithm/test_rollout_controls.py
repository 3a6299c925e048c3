"""Controls of the rollouts against their formulas: a plan's values and its steps."""

from __future__ import annotations

import math

import pytest
import torch

from aent.algorithm import entropy_controls, mini_batches
from aent.algorithm.entropy_controls.rollouts import allocate, majority
from aent.data.sample import Sample
from algorithm import steps
from algorithm.steps import Step, controlled, recipe_of
from algorithm.test_shaping_controls import N, make_step, steps_of


def with_entropy(value: float, temperature: float = 1.0) -> Step:
    return make_step(0, temperature).scored(entropies=[value] * N)


def test_temperature_follows_e3s_rule():
    """From the temperature of the batch, which is the one that it was sampled at."""
    entropies = [1.5, 1.2, 1.2, 1.9, 0.7, 1.5, 1.0, 1.4, 1.5, 0.9]
    recipe = recipe_of({"kind": "temperature_schedule"}, rollout={"temperature": 0.8})
    seen = steps_of(recipe, 10, lambda number, t: with_entropy(entropies[number], t))
    temperature, factor = 0.8, math.log(100) + math.log(math.log(100))
    assert entropy_controls.plan(recipe, {}).temperature == 0.8
    for number, (step, memory) in enumerate(seen):
        assert step.batch.temperature == pytest.approx(temperature)
        if number > 0:
            decay = 1.0
            if number >= 6:  # the last 40% of ten steps
                decay = 0.1 * 0.5 * (1 + math.cos(math.pi * (number - 6) / 4)) + 0.9
            ratio = 1.5 * decay / entropies[number]
            temperature *= 1 + temperature * math.log(ratio) / factor
        made = entropy_controls.plan(recipe, memory)
        assert made.temperature == pytest.approx(temperature)
        assert made.samples([4, 7]) == [8, 8]
    assert temperature != pytest.approx(0.8)


def test_the_temperature_of_a_batch_sampled_ahead_is_its_own():
    """Entropy was measured at the batch's temperature, whatever the last step has left."""
    recipe = recipe_of({"kind": "temperature_schedule"})
    memory = {"temperature_schedule": {"temperature": 1.3, "target": 1.5}}
    _, kept = controlled(with_entropy(1.5, temperature=0.9), recipe, 1, memory)
    assert kept["temperature_schedule"]["temperature"] == 0.9


def test_a_policy_without_entropy_keeps_its_temperature():
    recipe = recipe_of({"kind": "temperature_schedule"})
    seen = steps_of(recipe, 3, lambda _, t: with_entropy(0.0, t))
    assert entropy_controls.plan(recipe, seen[-1][1]).temperature == 1.0


def test_budget_goes_to_questions_that_went_worse():
    """By hand: of 5 known questions, ranks of 10, 11, 12, 13 are 0.8, 0, 0.2, 0.6 (mean rewards 0,
    1, 0.75, 0.25)."""
    means = {10: 0.0, 11: 1.0, 12: 0.75, 13: 0.25, 14: 0.5}
    counts = allocate([8] * 4, [10, 11, 12, 13], means, 4, 12)
    # 4 + floor(16 x (0.5, 0, 0.125, 0.375)) = 12, 4, 6, 10
    assert counts == [12, 4, 6, 10]
    assert allocate([8] * 4, [10, 11, 12, 13], means, 4, 11) == [11, 4, 6, 11]  # the rest: hardest
    assert allocate([8, 8, 8], [99, 10, 98], means, 4, 12) == [8, 8, 8]  # one known: its own
    assert allocate([8, 8], [98, 99], means, 4, 12) == [8, 8]
    assert allocate([8, 8], [11, 99], {11: 1.0}, 4, 12) == [8, 8]


def test_rewards_of_each_question_are_kept():
    recipe = recipe_of({"kind": "rollout_budget", "low": 2, "high": 12})
    memory = steps_of(recipe, 3)[-1][1]
    # items 0 and 1 got (1, 0) and (0.25, 0.25) a step
    assert memory["rollout_budget"]["rewards"] == {"0": [3.0, 6], "1": [1.5, 6]}
    assert entropy_controls.plan(recipe, memory).samples([0, 1, 5]) == [4, 12, 8]
    assert entropy_controls.plan(recipe, {}).samples([0, 1, 5]) == [8, 8, 8]


@pytest.mark.parametrize(("entropy", "temperature", "limit"), [(0.5, 1.2, 7), (0.51, 0.8, 3)])
def test_reroll_is_hot_below_the_target_and_cold_above(entropy, temperature, limit):
    recipe = recipe_of({"kind": "reroll", "target": 0.5, "limit": 7})
    assert entropy_controls.plan(recipe, {}).reroll is None
    _, memory = controlled(with_entropy(entropy), recipe)
    plan = entropy_controls.plan(recipe, memory)
    assert (plan.reroll.share, plan.reroll.temperature, plan.reroll.limit) == (
        0.25,
        temperature,
        limit,
    )
    assert plan.temperature == 1.0


def test_rerolled_responses_learn_with_advantage_one_in_place_of_others():
    """Their group is compared without them, and no gap of theirs counts."""
    lengths, rewards = (2, 1, 3, 2, 2), (1.0, 0.0, 0.0, 1.0, 1.0)
    samples = [
        Sample(
            [5], [1] * n, [-9.0 if i > 2 else -0.5] * n, [0] * n, "stop", 0, 0, r, rerolled=i > 2
        )
        for i, (n, r) in enumerate(zip(lengths, rewards))
    ]
    step = steps.make_step(samples, [0.0] * 10, torch.Generator(), 1.0)
    step = step.scored(logprobs=[-0.75] * 10, entropies=[1.0] * 6 + [50.0] * 4)
    recipe = recipe_of({"kind": "reroll", "target": 0.5}, algorithm={"advantage": "group_mean"})
    terms = mini_batches.loss_terms(step.batch, step.scores, None, recipe)
    after, memory = controlled(Step(step.batch, step.scores, terms), recipe)
    assert memory == {"reroll": {"entropy": 1.0}}
    third = 1 / 3
    want = [2 * third] * 2 + [-third] * 4 + [1.0] * 4
    assert step.response(after.terms.advantages) == pytest.approx(want)
    # the first two give way
    assert step.response(after.terms.token_weight) == [0.0] * 3 + [1.0] * 7
    assert step.batch.logprob_gap(step.scores.logprobs, step.batch.loss_mask) == 0.25


@pytest.mark.parametrize(
    ("answers", "rewards"),
    [
        (["4", "5", "4", None], [1, 0, 1, 0]),
        (["5", "4", "4", "5"], [1, 0, 0, 1]),  # even: the first
        ([None, None, "7"], [0, 0, 1]),  # no answer, no vote
        ([None, None], [0, 0]),
    ],
)
def test_majority_reward(answers, rewards):
    assert majority(answers) == rewards
    assert entropy_controls.plan(recipe_of({"kind": "majority_reward"}), {}).reward is majority
