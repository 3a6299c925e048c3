"""Partition and packing: the sequences of each rank, and the positions of tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aent.data.batch import Batch
from aent.trainer.packing import MicroBatch, lay_out, pack
from aent.trainer.partition import make_units, partition
from aent.trainer.segments import SHORT, see
from trainer import tiny
from trainer.test_attention import seen_by_each

CPU = torch.device("cpu")


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    data_parallel=st.integers(1, 4),
    limit=st.integers(10, 120),
)
def test_every_sequence_once_and_no_micro_batch_too_large(
    lengths: list[int], data_parallel: int, limit: int
) -> None:
    shares = partition(lengths, data_parallel, limit)
    assert len(shares) == data_parallel
    assert len({len(share) for share in shares}) == 1
    placed = [i for share in shares for micro_batch in share for i in micro_batch]
    assert sorted(placed) == list(range(len(lengths)))
    for micro_batch in (m for share in shares for m in share):
        assert len(micro_batch) <= 1 or sum(lengths[i] for i in micro_batch) <= limit


def test_a_sequence_longer_than_the_limit_is_alone() -> None:
    shares = partition([5, 50, 5], 1, 20)
    assert [1] in shares[0]


def test_balanced_by_tokens_not_by_sequences() -> None:
    shares = partition([40, 10, 10, 10, 10], 2, 100)
    assert [[sum([40, 10, 10, 10, 10][i] for i in m) for m in s] for s in shares] == [[40], [40]]


def test_balanced_by_work_within_the_limit_of_tokens() -> None:
    lengths = [40, 10, 10, 10, 10]
    work = [10.0, 10.0, 10.0, 10.0, 40.0]  # the last one's tokens attend to many others, say
    shares = partition(lengths, 2, 100, work)
    assert [[sum(work[i] for i in m) for m in s] for s in shares] == [[40.0], [40.0]]
    assert partition(lengths, 2, 100) != shares
    parts = [m for share in partition(lengths, 2, 60, work) for m in share]
    assert all(sum(lengths[i] for i in m) <= 60 for m in parts)


def test_the_work_of_a_unit_is_its_tokens_and_the_pairs_that_its_mask_lets_see() -> None:
    units = make_units(tiny.grouped_batch().batch, True, 100)
    seen = int(seen_by_each([(units[0].prompt, [4, 1, 7])], None).sum())
    # the full diagonal; the formula has halves
    assert units[0].work(2.0) == units[0].tokens + (seen - units[0].tokens / 2) / 2.0


def pack_alone(batch: Batch, sequences: list[int], multiple: int) -> MicroBatch:
    """These sequences, each a unit of its own."""
    units = make_units(batch, False, 100)
    return pack(batch, [units[s] for s in sequences], multiple, CPU)


def test_pack_keeps_tokens_positions_and_what_predicts_what() -> None:
    batch = tiny.mini_batch([(2, 3), (4, 1), (1, 2)]).batch
    micro_batch = pack_alone(batch, [2, 0], 8)  # 3 + 5 tokens: a multiple of 8 already
    tokens = micro_batch.tokens[0]
    assert tokens.tolist() == batch.tokens[[10, 11, 12, 0, 1, 2, 3, 4]].tolist()
    assert micro_batch.packed.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert micro_batch.packed.cu_seqlens_q.tolist() == [0, 3, 8]
    assert (tokens[micro_batch.predicts + 1] == micro_batch.targets).all()
    assert (batch.tokens[micro_batch.index] == micro_batch.targets).all()
    assert micro_batch.index.tolist() == [11, 12, 2, 3, 4]
    assert micro_batch.sequence.tolist() == [0, 0, 1, 1, 1]


def test_pack_pads_with_a_sequence_of_its_own() -> None:
    batch = tiny.mini_batch([(2, 3)]).batch
    micro_batch = pack_alone(batch, [0], 4)
    assert micro_batch.tokens.shape == (1, 8)
    assert micro_batch.packed.cu_seqlens_q.tolist() == [0, 5, 8]
    nothing = pack_alone(batch, [], 4)
    assert nothing.tokens.shape == (1, 4)
    assert len(nothing.predicts) == 0


def test_padded_layout_round_trip() -> None:
    visible = see(lay_out([(1, [2]), (1, []), (2, [3])], CPU)[0].runs, None, CPU)
    batch = visible.padded
    assert batch is not None
    values = torch.arange(9)
    padded = values[batch.index].view(batch.shape)
    assert padded[1, 0] == 3
    assert (padded.flatten()[visible.order] == values).all()
    assert batch.mask(None, torch.float32) is None
    visible = see(lay_out([(1, [3]), (2, [2])], CPU)[0].runs, None, CPU)
    assert visible.padded is not None
    assert visible.padded.index is visible.order is None


def test_short_units_are_padded_to_one_another_and_long_ones_not_at_all() -> None:
    lengths = [SHORT + 1, 3, SHORT - 1, 3000, 70]
    visible = see(lay_out([(1, [n - 1]) for n in lengths], CPU)[0].runs, None, CPU)
    batch = visible.padded
    assert batch is not None
    assert batch.index is not None
    assert batch.shape == (3, SHORT - 1)
    assert [stretch.queries for stretch in visible.stretches] == [0, 3]
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    long = [torch.arange(starts[n], starts[n] + lengths[n]) for n in (0, 3)]
    assert (torch.cat([batch.index, *long])[visible.order] == torch.arange(sum(lengths))).all()


def test_a_response_without_a_prompt_is_an_error() -> None:
    batch = tiny.mini_batch([(1, 3), (2, 2)]).batch
    batch.loss_mask[4] = True
    with pytest.raises(ValueError, match="loss_mask"):
        pack_alone(batch, [1], 1)


def test_units_are_the_sequences_of_a_group_with_one_prompt() -> None:
    batch = tiny.grouped_batch().batch
    units = make_units(batch, True, 100)
    assert [u.sequences for u in units] == [[0, 1, 2], [3], [4, 5]]
    assert [(u.prompt, u.tokens) for u in units] == [(5, 5 + 4 + 1 + 7), (3, 3 + 6), (9, 9 + 2 + 5)]
    alone = make_units(batch, False, 100)
    assert [u.sequences for u in alone] == [[s] for s in range(6)]
    assert [u.tokens for u in alone] == batch.lengths.tolist()


def test_equal_prompts_of_two_groups_are_two_units() -> None:
    batch = replace(tiny.grouped_batch().batch, group=torch.tensor([0, 0, 7, 1, 2, 2]))
    assert [u.sequences for u in make_units(batch, True, 100)] == [[0, 1], [2], [3], [4, 5]]


def test_a_unit_beyond_the_limit_is_split_and_computes_its_prompt_twice() -> None:
    units = make_units(tiny.grouped_batch().batch, True, 14)
    assert [u.tokens for u in units] == [5 + 7, 5 + 4 + 1, 3 + 6, 9 + 5, 9 + 2]
    assert sorted(s for u in units for s in u.sequences) == list(range(6))


def test_shared_prompt_layout_positions_mask_and_what_predicts_what() -> None:
    packed, previous = lay_out([(2, [2, 1]), (1, [2])], CPU)
    assert packed.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert previous.tolist()[2:5] == [1, 2, 1]  # both responses continue the prompt's last token
    batch = see(packed.runs, None, CPU).padded
    assert batch is not None
    mask = batch.mask(None, torch.float32)
    assert mask is not None
    assert mask.unique().tolist() == [-torch.inf, 0]
    seen = (mask[0, 0] == 0).long().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second response does not see the first
    ]
    assert (mask == 0).any(dim=-1).all()  # no row is empty, padding included: no NaN


@pytest.mark.parametrize(("limit", "multiple"), [(100, 1), (100, 32), (14, 8)])
def test_every_response_token_is_predicted_from_its_own_sequence(limit: int, multiple: int) -> None:
    batch = tiny.grouped_batch().batch
    micro_batch = pack(batch, make_units(batch, True, limit), multiple, CPU)
    packed, starts = micro_batch.packed, batch.cu_seqlens.tolist()
    visible = see(packed.runs, None, CPU)
    short = visible.padded
    assert short is not None
    mask, longest = short.mask(None, torch.float32), short.shape[1]
    assert mask is not None
    assert short.index is not None
    assert visible.order is not None
    padded = micro_batch.tokens[0][short.index].view(short.shape)
    assert sorted(micro_batch.index.tolist()) == batch.loss_mask.nonzero()[:, 0].tolist()
    for place, i in zip(micro_batch.predicts.tolist(), micro_batch.index.tolist()):
        row, column = divmod(int(visible.order[place]), longest)
        seen = padded[row][mask[row, 0, column] == 0]
        start = starts[int(batch.sequence_of_token[i])]
        assert seen.tolist() == batch.tokens[start:i].tolist()
        assert int(packed.positions[place]) == i - start - 1
