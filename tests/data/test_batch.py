"""The flat batch: layout, selection, and its broadcast between ranks."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from aent.data.batch import Batch, broadcast_batch
from aent.data.flat import kinds
from aent.data.sample import Sample
from distributed.ranks import run_ranks

TEMPERATURE = 1 / 3  # no float32


def samples() -> list[Sample]:
    return [
        Sample([1, 2], [3], [-0.1], [4], "stop", group=0, item=9, reward=1.0),
        Sample([1], [3, 4], [-0.2, -0.3], [4, 5], "length", group=0, item=9),
        Sample([8, 8, 8], [2], [-0.4], [5], "stop", group=1, item=2, reward=0.5, rerolled=True),
    ]


def make_batch() -> Batch:
    return Batch.from_samples(samples(), TEMPERATURE)


def test_layout():
    batch = make_batch()
    assert batch.tokens.tolist() == [1, 2, 3, 1, 3, 4, 8, 8, 8, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 6, 10]
    assert batch.loss_mask.long().tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 0, 1]
    assert batch.versions.tolist() == [-1, -1, 4, -1, 4, 5, -1, -1, -1, 5]
    assert batch.response_lengths.tolist() == [1, 2, 1]
    assert batch.sequence_of_token.tolist() == [0] * 3 + [1] * 3 + [2] * 4
    assert batch.truncated.tolist() == [False, True, False]
    assert batch.own.tolist() == [True, True, False]
    assert batch.own_tokens.nonzero()[:, 0].tolist() == [2, 4, 5]
    assert batch.temperature == TEMPERATURE


@pytest.mark.parametrize("name", [f.name for f in fields(Batch)])
def test_select_takes_every_field_of_whole_sequences_in_the_given_order(name):
    kind, tokens, sequences = kinds(Batch)[name], [6, 7, 8, 9, 0, 1, 2], [2, 0]
    changed = make_batch()
    if kind == "token":
        changed = replace(changed, **{name: torch.arange(10)})
    elif name != "lengths":  # by which the tokens of a sequence are found
        changed = replace(changed, **{name: torch.arange(3) if kind == "sequence" else 0.7})
    value, got = getattr(changed, name), getattr(changed.select(sequences), name)
    if kind == "batch":
        assert got == value
    else:
        assert torch.equal(got, value[tokens if kind == "token" else sequences])


def test_a_batch_says_what_it_is_and_is_not_written_into():
    assert set(kinds(Batch).values()) == {"token", "sequence", "batch"}
    for name, kind in kinds(Batch).items():
        lengths = {"token": [10], "sequence": [3], "batch": []}[kind]
        assert list(getattr(getattr(make_batch(), name), "shape", [])) == lengths
    with pytest.raises(FrozenInstanceError):
        make_batch().reward = torch.zeros(3)


def test_the_gap_is_over_the_policys_own_responses():
    batch = make_batch()
    ours = torch.where(
        batch.rerolled[batch.sequence_of_token], -9.0, batch.behaviour_logprobs + 0.5
    )
    everything = torch.ones_like(batch.loss_mask)
    assert batch.logprob_gap(ours, everything) == pytest.approx(0.5)
    assert batch.logprob_gap(ours, ~everything) is None


def test_a_sample_that_lost_a_logprob_is_refused():
    bad = samples()[0]
    bad.logprobs = []
    with pytest.raises(ValueError, match="0 log-probs"):
        Batch.from_samples([bad], 1.0)


def plain(batch: Batch) -> dict:
    values = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return {
        name: (value.tolist(), str(value.dtype)) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def broadcast_on_rank(rank: int, world: int) -> dict:
    return plain(broadcast_batch(make_batch() if rank == 0 else None))


def test_broadcast_carries_every_field_to_the_last_bit():
    assert run_ranks(broadcast_on_rank, 2) == [plain(make_batch())] * 2
