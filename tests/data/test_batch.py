"""The flat batch: layout, selection, and its way between ranks."""

import pytest
import torch

from aent.data.batch import Batch, broadcast_batch
from aent.data.sample import Sample
from distributed.ranks import run_ranks


def samples() -> list[Sample]:
    return [
        Sample([1, 2], [3], [-0.1], [4], "stop", group=0, item=9, reward=1.0),
        Sample([1], [3, 4], [-0.2, -0.3], [4, 5], "length", group=0, item=9),
        Sample([8, 8, 8], [2], [-0.4], [5], "stop", group=1, item=2, reward=0.5),
    ]


def test_layout():
    batch = Batch.from_samples(samples())
    assert batch.tokens.tolist() == [1, 2, 3, 1, 3, 4, 8, 8, 8, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 6, 10]
    assert batch.loss_mask.long().tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 0, 1]
    assert batch.versions.tolist() == [-1, -1, 4, -1, 4, 5, -1, -1, -1, 5]
    assert batch.response_lengths.tolist() == [1, 2, 1]
    assert batch.sequence_of_token.tolist() == [0] * 3 + [1] * 3 + [2] * 4
    assert batch.truncated.tolist() == [False, True, False]


def test_select_takes_whole_sequences_in_the_given_order():
    batch = Batch.from_samples(samples())
    batch.advantages = torch.arange(10.0)
    chosen = batch.select([2, 0])
    assert chosen.tokens.tolist() == [8, 8, 8, 2, 1, 2, 3]
    assert chosen.advantages.tolist() == [6, 7, 8, 9, 0, 1, 2]
    assert chosen.cu_seqlens.tolist() == [0, 4, 7]
    assert chosen.reward.tolist() == [0.5, 1.0]
    assert chosen.old_logprobs is None


def test_a_sample_that_lost_a_logprob_is_refused():
    bad = samples()[0]
    bad.logprobs = []
    with pytest.raises(ValueError, match="0 log-probs"):
        Batch.from_samples([bad])


def broadcast_on_rank(rank: int, world: int) -> dict:
    batch = None
    if rank == 0:
        batch = Batch.from_samples(samples())
        batch.advantages = torch.arange(10.0)
    received = broadcast_batch(batch)
    return {name: value.tolist() for name, value in received.named_tensors()}


def test_broadcast_carries_every_field_that_is_there():
    first, second = run_ranks(broadcast_on_rank, 2)
    assert first == second
    assert first["advantages"] == list(range(10))
    assert "old_logprobs" not in first
