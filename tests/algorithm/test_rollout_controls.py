"""Controls of the rollouts against their formulas: what a plan says, and what it is made of."""

from __future__ import annotations

import math

import pytest
import torch

from aent.algorithm import entropy_controls, terms
from aent.algorithm.entropy_controls.rollouts import allocate, majority
from aent.data.batch import Batch
from aent.data.sample import Sample
from algorithm.test_shaping_controls import (
    make_batch,
    over_response,
    recipe_of,
    response,
    steps_of,
    through_json,
)


def with_entropy(value: float, batch: Batch) -> None:
    batch.old_entropies = over_response(batch, torch.full((12,), value))


def test_temperature_follows_e3s_rule():
    entropies = [1.5, 1.2, 1.2, 1.9, 0.7, 1.5, 1.0, 1.4, 1.5, 0.9]
    recipe = recipe_of({"kind": "temperature_schedule"}, rollout={"temperature": 0.8})
    steps = steps_of(recipe, 10, lambda step, batch: with_entropy(entropies[step], batch))
    temperature, factor = 0.8, math.log(100) + math.log(math.log(100))
    assert entropy_controls.plan(recipe, {}).temperature == 0.8
    for step, (_, memory) in enumerate(steps):
        if step > 0:
            decay = 1.0
            if step >= 6:  # the last 40% of ten steps
                decay = 0.1 * 0.5 * (1 + math.cos(math.pi * (step - 6) / 4)) + 0.9
            ratio = 1.5 * decay / entropies[step]
            temperature *= 1 + temperature * math.log(ratio) / factor
        made = entropy_controls.plan(recipe, memory)
        assert made.temperature == pytest.approx(temperature)
        assert made.samples([4, 7]) == [8, 8]
    assert temperature != pytest.approx(0.8)


def test_a_policy_without_entropy_keeps_its_temperature():
    recipe = recipe_of({"kind": "temperature_schedule"})
    steps = steps_of(recipe, 3, lambda step, batch: with_entropy(0.0, batch))
    assert entropy_controls.plan(recipe, steps[-1][1]).temperature == 1.0


def test_budget_goes_to_questions_that_went_worse():
    """By hand: of 5 known questions, ranks of 10, 11, 12, 13 are .8, 0, .2, .6 (mean rewards 0, 1,
    .75, .25)."""
    means = {10: 0.0, 11: 1.0, 12: 0.75, 13: 0.25, 14: 0.5}
    counts = allocate([8] * 4, [10, 11, 12, 13], means, 4, 12)
    # 4 + floor(16 x (.5, 0, .125, .375)) = 12, 4, 6, 10
    assert counts == [12, 4, 6, 10]
    assert allocate([8] * 4, [10, 11, 12, 13], means, 4, 11) == [11, 4, 6, 11]  # the rest: hardest
    assert allocate([8, 8, 8], [99, 10, 98], means, 4, 12) == [8, 8, 8]  # one known: its own
    assert allocate([8, 8], [98, 99], means, 4, 12) == [8, 8]
    assert allocate([8, 8], [11, 99], {11: 1.0}, 4, 12) == [8, 8]


def test_rewards_of_each_question_are_kept():
    recipe = recipe_of({"kind": "rollout_budget", "low": 2, "high": 12})
    steps = steps_of(recipe, 3)
    kept = steps[-1][1]["rollout_budget"]["rewards"]
    assert kept == {"0": [3.0, 6], "1": [1.5, 6]}  # items 0 and 1 got (1, 0) and (.25, .25) a step
    plan = entropy_controls.plan(recipe, steps[-1][1])
    assert plan.samples([0, 1, 5]) == [4, 12, 8]
    assert entropy_controls.plan(recipe, {}).samples([0, 1, 5]) == [8, 8, 8]


@pytest.mark.parametrize(("entropy", "temperature", "limit"), [(0.5, 1.2, 7), (0.51, 0.8, 3)])
def test_reroll_is_hot_below_the_target_and_cold_above(entropy, temperature, limit):
    control = {"kind": "reroll", "target": 0.5, "limit": 7}
    recipe = recipe_of(control)
    assert entropy_controls.plan(recipe, {}).reroll is None
    batch = make_batch()
    with_entropy(entropy, batch)
    memory = through_json(entropy_controls.apply(batch, recipe, 0, 100, {}))
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
    batch = Batch.from_samples(samples)
    batch.old_logprobs = over_response(batch, torch.full((10,), -0.75))
    batch.old_entropies = over_response(batch, torch.tensor([1.0] * 6 + [50.0] * 4))
    recipe = recipe_of({"kind": "reroll", "target": 0.5}, algorithm={"advantage": "group_mean"})
    assert batch.logprob_gap == 0.25
    terms.set_advantages(batch, recipe)
    memory = entropy_controls.apply(batch, recipe, 0, 100, {})
    assert memory == {"reroll": {"entropy": 1.0}}
    third = 1 / 3
    want = [2 * third] * 2 + [-third] * 4 + [1.0] * 4
    assert response(batch, batch.advantages) == pytest.approx(want)
    assert response(batch, batch.importance) == [0.0] * 3 + [1.0] * 7  # the first two give way
    assert response(batch, batch.behaviour_logprobs) == [-0.5] * 6 + [-0.75] * 4
    assert batch.logprob_gap == 0.25


@pytest.mark.parametrize(
    ("answers", "rewards"),
    [
        (["4", "5", "4", None], [1, 0, 1, 0]),
        (["5", "4", "4", "5"], [1, 0, 0, 1]),  # even: the first
        ([None, None, "7"], [0, 0, 1]),  # no answer is no vote
        ([None, None], [0, 0]),
    ],
)
def test_majority_reward(answers, rewards):
    assert majority(answers) == rewards
    assert entropy_controls.plan(recipe_of({"kind": "majority_reward"}), {}).reward is majority
