"""Advantages, weights per token, corrections and mini-batches, against numbers worked by hand."""

import math

import pytest
import torch

from aent.algorithm import aggregation, importance, prepare
from aent.algorithm.advantages import group_advantages
from aent.batch import Batch, Sample
from aent.recipe.schema import AlgorithmSection


def make_batch(lengths=(1, 3, 2, 4), groups=(0, 0, 1, 1), rewards=(1.0, 0.0, 1.0, 1.0)) -> Batch:
    samples = [
        Sample([5, 6], list(range(n)), [-0.5] * n, [0] * n, "stop", g, g, r)
        for n, g, r in zip(lengths, groups, rewards)
    ]
    return Batch.from_samples(samples)


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
    prepare.set_advantages(batch, AlgorithmSection())
    first, second = prepare.split_mini_batches(batch, AlgorithmSection(), 2)
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
    ("kind", "mini_batches", "needed"),
    [("none", 1, False), ("none", 2, True), ("truncated_token", 1, True)],
)
def test_who_needs_old_logprobs(kind, mini_batches, needed):
    assert prepare.needs_old_logprobs(AlgorithmSection(importance=kind), mini_batches) is needed
