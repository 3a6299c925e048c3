"""Advantages, weights per token, corrections and mini-batches, against numbers worked by hand."""

import math

import pytest
import torch

from aent.algorithm import aggregation, importance, mini_batches
from aent.algorithm.advantages import batch_normalized, group_advantages, leave_one_out
from aent.algorithm.mini_batches import loss_terms
from aent.algorithm.rewards import overlong_penalty
from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.data.scores import Scores
from aent.recipe.schema import Recipe


def make_batch(lengths=(1, 3, 2, 4), groups=(0, 0, 1, 1), rewards=(1.0, 0.0, 1.0, 1.0)) -> Batch:
    samples = [
        Sample([5, 6], list(range(n)), [-0.5] * n, [0] * n, "stop", g, g, r)
        for n, g, r in zip(lengths, groups, rewards)
    ]
    return Batch.from_samples(samples, temperature=1.0)


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
    batch, recipe = make_batch(), make_recipe(algorithm={"advantage": kind})
    got = loss_terms(batch, None, None, recipe).advantages
    each = [a for a, n in zip(STEP[kind], (1, 3, 2, 4)) for _ in range(n)]
    assert got[batch.loss_mask].tolist() == pytest.approx(each, rel=1e-5, abs=1e-7)
    assert not got[~batch.loss_mask].any()
    assert not mini_batches.penalty(batch, recipe).any()


def test_overlong_shaping_enters_the_advantages_and_leaves_the_reward():
    batch = make_batch()
    algorithm = {"advantage": "group_mean", "overlong_buffer": 2, "overlong_penalty": 0.5}
    recipe = make_recipe(rollout={"max_response_tokens": 4}, algorithm=algorithm)
    assert mini_batches.penalty(batch, recipe).tolist() == [
        0,
        -0.25,
        0,
        -0.5,
    ]  # of 1, 3, 2, 4 tokens
    assert batch.reward.tolist() == [1, 0, 1, 1]
    assert mini_batches.sequence_advantages(batch, recipe).tolist() == [
        0.625, -0.625, 0.25, -0.25,
    ]  # fmt: skip


def test_constant_length_sums_tokens_by_the_recipes_longest_response():
    batch = make_batch()
    recipe = make_recipe(
        rollout={"max_response_tokens": 5}, algorithm={"aggregation": "constant_length"}
    )
    weight = mini_batches.policy_weight(batch, recipe)
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
    terms = loss_terms(batch, None, None, recipe)
    first, second = mini_batches.split(batch, terms, recipe)
    assert first.batch.group.tolist() == [0, 0]
    assert second.batch.response_lengths.tolist() == [3, 4]
    for mini, sequences in ((first, [0, 2]), (second, [1, 3])):
        assert mini.terms.policy_weight.sum().item() == pytest.approx(1)
        assert torch.equal(mini.terms.entropy_weight, aggregation.token_mean(mini.batch))
        assert torch.equal(mini.terms.advantages, terms.advantages[batch.places(sequences)])


def test_the_terms_of_a_recipe_by_what_was_scored():
    batch = make_batch()
    zero = torch.zeros_like(batch.behaviour_logprobs)
    unscored = loss_terms(batch, None, None, make_recipe())
    assert unscored.old_logprobs is None
    assert unscored.correction is None
    assert unscored.reference is None
    algorithm = {"importance": "truncated_token", "importance_cap": 1.5, "kl_coefficient": 0.2}
    scores = Scores(batch.behaviour_logprobs - 0.25 * batch.loss_mask, zero)
    scored = loss_terms(batch, scores, zero - 1, make_recipe(algorithm=algorithm))
    assert torch.equal(scored.old_logprobs, scores.logprobs)
    assert scored.correction[batch.loss_mask].tolist() == pytest.approx([math.exp(-0.25)] * 10)
    assert scored.reference.logprobs.tolist() == [-1.0] * 18
    assert torch.equal(scored.reference.weight, 0.2 * batch.loss_mask)
    assert scored.token_weight is None


def test_importance_truncated_per_token():
    batch = make_batch(lengths=(2,), groups=(0,), rewards=(1.0,))
    weight = importance.truncated_token(batch, torch.tensor([0.0, 0.0, -0.4, 5.0]), cap=2.0)
    assert weight.tolist() == pytest.approx([0, 0, math.exp(0.1), 2.0])


def test_importance_masks_whole_sequences():
    batch = make_batch(lengths=(2, 2), groups=(0, 0), rewards=(1.0, 0.0))
    gaps = torch.tensor([0, 0, 1.0, 1.0, 0, 0, 3.0, -3.0])
    weight = importance.masked_sequence(batch, batch.behaviour_logprobs + gaps, cap=2.0)
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
def test_who_needs_scores(sections, needed):
    assert mini_batches.needs_scores(make_recipe(**sections)) is needed


@pytest.mark.parametrize("gap", [95.0, math.inf])
@pytest.mark.parametrize("kind", ["truncated_token", "masked_sequence"])
def test_a_correction_of_an_extreme_token_is_a_number(kind, gap):
    batch = make_batch()
    logprobs = batch.behaviour_logprobs.clone()
    off, on = (int(m.nonzero()[0]) for m in (~batch.loss_mask, batch.loss_mask))
    logprobs[off] = math.nan
    logprobs[on] = gap
    correction = mini_batches.CORRECTIONS[kind](batch, logprobs, 2.0)
    assert correction.isfinite().all()
    assert correction[off] == 0
    assert correction[on] == (2.0 if kind == "truncated_token" else 0.0)
