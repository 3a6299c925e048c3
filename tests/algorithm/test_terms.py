"""Advantages, weights per token, corrections and mini-batches, against numbers worked by hand."""

import math

import pytest
import torch

from aent.algorithm import aggregation, importance, terms
from aent.algorithm.advantages import batch_normalized, group_advantages, leave_one_out
from aent.algorithm.rewards import overlong_penalty
from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.recipe.schema import Recipe


def make_batch(lengths=(1, 3, 2, 4), groups=(0, 0, 1, 1), rewards=(1.0, 0.0, 1.0, 1.0)) -> Batch:
    samples = [
        Sample([5, 6], list(range(n)), [-0.5] * n, [0] * n, "stop", g, g, r)
        for n, g, r in zip(lengths, groups, rewards)
    ]
    return Batch.from_samples(samples)


def make_recipe(**sections) -> Recipe:
    values = {"name": "x", "model": {"path": "none"}, "controller": {"initial": 0.0}}
    return Recipe.model_validate(values | sections)


def test_group_advantages_uneven_groups_in_any_order():
    reward = torch.tensor([1.0, 5.0, 0.0, 2.0, 5.0, 9.0])
    group = torch.tensor([7, 3, 7, 7, 3, 8])
    centred = [0.0, 0.0, -1.0, 1.0, 0.0, 0.0]
    assert group_advantages(reward, group, normalize=False).tolist() == pytest.approx(centred)
    normalized = group_advantages(reward, group, normalize=True)
    assert normalized.tolist() == pytest.approx([x / (1.0 + 1e-6) for x in centred])


def test_a_group_of_equal_rewards_has_exactly_no_advantage():
    reward, group = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.int64)
    assert group_advantages(reward, group, normalize=True).tolist() == [0.0] * 7


def test_leave_one_out_compares_with_the_others_of_the_group():
    reward = torch.tensor([1.0, 5.0, 0.0, 2.0, 5.0, 9.0])
    group = torch.tensor([7, 3, 7, 7, 3, 8])
    by_hand = [1 - (0 + 2) / 2, 0, 0 - (1 + 2) / 2, 2 - (1 + 0) / 2, 0, 0]
    assert leave_one_out(reward, group).tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("baseline", [False, True])
def test_batch_normalized_whitens_over_tokens(baseline):
    reward, group = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0, 0, 1])
    tokens = torch.tensor([2, 1, 3])
    result = batch_normalized(reward, group, tokens, baseline)
    value = [0.5, -0.5, 0.0] if baseline else [1.0, 0.0, 3.0]
    each = [v for v, n in zip(value, tokens.tolist()) for _ in range(n)]  # one per token
    mean, std = sum(each) / 6, torch.tensor(each, dtype=torch.float64).std().item()
    assert result.tolist() == pytest.approx([(v - mean) / std for v in value], rel=1e-6)


def test_batch_normalized_of_equal_rewards_is_nothing():
    reward, tokens = torch.full((5,), 0.1), torch.tensor([3, 1, 2, 7, 4])
    result = batch_normalized(reward, torch.zeros(5, dtype=torch.int64), tokens, False)
    assert result.abs().max().item() < 1e-6


def test_overlong_penalty_falls_over_the_buffer():
    tokens = torch.tensor([1, 80, 85, 90, 100])
    assert overlong_penalty(tokens, 100, 20, 2.0).tolist() == pytest.approx([0, 0, -0.5, -1, -2])


STEP = {  # rewards 1, 0, 1, 1 of 1, 3, 2, 4 tokens; groups 0, 0, 1, 1
    "group_normalized": [math.sqrt(0.5), -math.sqrt(0.5), 0, 0],
    "group_mean": [0.5, -0.5, 0, 0],
    "leave_one_out": [1, -1, 0, 0],
    "reinforce_plus_plus": [x / math.sqrt(2.1 / 9) for x in (0.3, -0.7, 0.3, 0.3)],
    "reinforce_plus_plus_baseline": [x / math.sqrt(0.9 / 9) for x in (0.6, -0.4, 0.1, 0.1)],
}


@pytest.mark.parametrize("kind", STEP)
def test_advantages_of_a_step_by_hand(kind):
    batch = make_batch()
    terms.set_advantages(batch, make_recipe(algorithm={"advantage": kind}))
    each = [a for a, n in zip(STEP[kind], (1, 3, 2, 4)) for _ in range(n)]
    assert batch.advantages[batch.loss_mask].tolist() == pytest.approx(each, rel=1e-5, abs=1e-7)
    assert not batch.advantages[~batch.loss_mask].any()
    assert batch.penalty is None


def test_overlong_shaping_enters_the_advantages_and_leaves_the_reward():
    batch = make_batch()
    algorithm = {"advantage": "group_mean", "overlong_buffer": 2, "overlong_penalty": 0.5}
    recipe = make_recipe(rollout={"max_response_tokens": 4}, algorithm=algorithm)
    terms.set_advantages(batch, recipe)
    assert batch.penalty.tolist() == [0, -0.25, 0, -0.5]  # of 1, 3, 2, 4 tokens
    assert batch.reward.tolist() == [1, 0, 1, 1]
    assert terms.sequence_advantages(batch, recipe.algorithm).tolist() == [
        0.625, -0.625, 0.25, -0.25,
    ]  # fmt: skip
    (mini,) = terms.split_mini_batches(batch, recipe)
    assert mini.penalty.tolist() == batch.penalty.tolist()


def test_constant_length_sums_tokens_by_the_recipes_longest_response():
    batch = make_batch()
    recipe = make_recipe(
        rollout={"max_response_tokens": 5}, algorithm={"aggregation": "constant_length"}
    )
    weight = terms.policy_weight(batch, recipe)
    assert weight[batch.loss_mask].tolist() == pytest.approx([1 / (4 * 5)] * 10)
    assert not weight[~batch.loss_mask].any()


def test_weights_sum_to_one_and_follow_their_means():
    batch = make_batch()
    token, sequence = aggregation.token_mean(batch), aggregation.sequence_mean(batch)
    assert token.sum().item() == pytest.approx(1)
    assert sequence.sum().item() == pytest.approx(1)
    assert token[batch.loss_mask].tolist() == pytest.approx([0.1] * 10)
    expected = [1 / 4 / n for n in (1, 3, 2, 4) for _ in range(n)]
    assert sequence[batch.loss_mask].tolist() == pytest.approx(expected)
    assert not token[~batch.loss_mask].any()
    assert not sequence[~batch.loss_mask].any()


def test_mini_batches_keep_groups_whole_and_have_their_own_denominators():
    batch = make_batch(groups=(0, 1, 0, 1))
    recipe = make_recipe(trainer={"mini_batches": 2})
    terms.set_advantages(batch, recipe)
    first, second = terms.split_mini_batches(batch, recipe)
    assert first.group.tolist() == [0, 0]
    assert second.response_lengths.tolist() == [3, 4]
    for mini in (first, second):
        assert mini.policy_weight.sum().item() == pytest.approx(1)
        assert mini.entropy_weight.sum().item() == pytest.approx(1)
        assert mini.advantages is not None


def test_importance_truncated_per_token():
    batch = make_batch(lengths=(2,), groups=(0,), rewards=(1.0,))
    batch.old_logprobs = torch.tensor([0.0, 0.0, -0.4, 5.0])
    weight = importance.truncated_token(batch, cap=2.0)
    assert weight.tolist() == pytest.approx([0, 0, math.exp(0.1), 2.0])


def test_importance_masks_whole_sequences():
    batch = make_batch(lengths=(2, 2), groups=(0, 0), rewards=(1.0, 0.0))
    gaps = torch.tensor([0, 0, 1.0, 1.0, 0, 0, 3.0, -3.0])
    batch.old_logprobs = batch.behaviour_logprobs + gaps
    weight = importance.masked_sequence(batch, cap=2.0)
    assert weight.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("sections", "needed"),
    [
        ({}, False),
        ({"trainer": {"mini_batches": 2}}, True),
        ({"algorithm": {"importance": "truncated_token"}}, True),
        ({"entropy_controls": [{"kind": "clip_cov"}]}, True),
    ],
)
def test_who_needs_old_logprobs(sections, needed):
    assert terms.needs_old_logprobs(make_recipe(**sections)) is needed


@pytest.mark.parametrize("gap", [95.0, math.inf])
@pytest.mark.parametrize("kind", ["truncated_token", "masked_sequence"])
def test_a_correction_of_an_extreme_token_is_a_number(kind, gap):
    batch = make_batch()
    batch.old_logprobs = batch.behaviour_logprobs.clone()
    off, on = (int(m.nonzero()[0]) for m in (~batch.loss_mask, batch.loss_mask))
    batch.old_logprobs[off] = math.nan
    batch.old_logprobs[on] = gap
    correction = terms.CORRECTIONS[kind](batch, 2.0)
    assert correction.isfinite().all()
    assert correction[off] == 0
    assert correction[on] == (2.0 if kind == "truncated_token" else 0.0)
