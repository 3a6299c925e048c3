"""Counts that a step's record takes from its samples and weights."""

import torch

from aent.batch import Batch, Sample
from aent.records import groups_replaced, zero_share
from aent.sampling import Rollout


def samples() -> list[Sample]:
    """Two groups of two responses; three groups were thrown away for the first one's place."""
    return [
        Sample([1], [2] * n, [0.0] * n, [0] * n, "stop", group, 0, replaced=3 * (1 - group))
        for group, n in ((0, 1), (0, 2), (1, 1), (1, 4))
    ]


def test_groups_replaced_counts_groups_and_not_samples():
    assert groups_replaced(Rollout(samples(), [], [], [])) == 3


def test_zero_share_is_over_response_tokens():
    batch = Batch.from_samples(samples())
    assert zero_share(batch, None) == 0
    weight = torch.where(batch.loss_mask, 1.0, 0.0)
    assert zero_share(batch, weight) == 0
    weight[batch.loss_mask.nonzero()[:2, 0]] = 0
    assert zero_share(batch, weight) == 2 / 8
