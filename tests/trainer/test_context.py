"""The tokens of context-parallel ranks, against Megatron's and Transformer Engine's order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd

from aent.trainer.context import Part
from aent.trainer.packing import MicroBatch, pack
from aent.trainer.partition import make_units
from aent.trainer.rotary import Rotary, rotate
from trainer import tiny

CPU = torch.device("cpu")


def test_the_places_are_those_of_transformer_engine() -> None:
    """The example in its ``attn_forward_func_with_cp``: sequences of 8 and 4 tokens, two ranks."""
    assert Part(2, 0).places([8, 4]).tolist() == [0, 1, 6, 7, 8, 11]
    assert Part(2, 1).places([8, 4]).tolist() == [2, 3, 4, 5, 9, 10]


def parts(share: bool, size: int, multiple: int) -> list[MicroBatch]:
    """One micro-batch of all sequences, as each of ``size`` ranks has it."""
    batch = tiny.grouped_batch().batch
    units = make_units(batch, share, 100)
    return [pack(batch, units, multiple, CPU, Part(size, i)) for i in range(size)]


@pytest.mark.parametrize("size", [2, 4])
def test_tokens_stand_where_megatron_rotates_them(size: int) -> None:
    """What Transformer Engine's layers are given: each sequence's length a multiple of twice the
    ranks, and this rank's tokens in the order that Megatron's packed rotation expects."""
    frequencies = 1 / 100 ** (torch.arange(4) / 4)
    angles = torch.outer(torch.arange(100.0), torch.cat([frequencies] * 2))[:, None, None]
    for index, micro_batch in enumerate(parts(False, size, 2 * size * 3)):
        packed, tokens = micro_batch.packed, micro_batch.tokens.shape[1]
        lengths = packed.cu_seqlens_q.diff()
        assert not (lengths % (2 * size)).any()
        assert int(lengths.sum()) == size * tokens
        assert packed.max_seqlen_q == int(lengths.max())
        assert tokens % 3 == 0  # for sequence parallelism over three ranks
        x = torch.randn(tokens, 2, 8)
        group = SimpleNamespace(size=lambda: size, rank=lambda index=index: index)
        want = _apply_rotary_pos_emb_thd(x, packed.cu_seqlens_q, angles, cp_group=group)
        got = rotate(x, *Rotary(frequencies, 1.0)(packed.positions, torch.float32))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("size", "multiple"), [(2, 4), (2, 8), (3, 6)])
def test_each_response_token_is_predicted_by_the_rank_that_has_the_one_before(
    share: bool, size: int, multiple: int
) -> None:
    batch = tiny.grouped_batch().batch
    whole = pack(batch, make_units(batch, share, 100), 1, CPU)
    of = {int(i): (int(s), int(t)) for i, s, t in zip(whole.index, whole.sequence, whole.targets)}
    starts, seen = batch.cu_seqlens.tolist(), []
    for micro_batch in parts(share, size, multiple):
        assert micro_batch.responses.tolist() == whole.responses.tolist()
        tokens, positions = micro_batch.tokens[0], micro_batch.packed.positions
        assert len(tokens) == len(positions)
        for place, i, s, target in zip(
            micro_batch.predicts.tolist(),
            micro_batch.index.tolist(),
            micro_batch.sequence.tolist(),
            micro_batch.targets.tolist(),
        ):
            assert (s, target) == of[i]
            assert int(tokens[place]) == int(batch.tokens[i - 1])
            assert int(positions[place]) == i - 1 - starts[int(batch.sequence_of_token[i])]
        seen += micro_batch.index.tolist()
    assert sorted(seen) == sorted(of)
    assert whole.responses.tolist() == whole.sequence.bincount().tolist()


def test_a_response_without_tokens_does_not_count() -> None:
    """A sequence with only a prompt; its padding is at a response's place."""
    batch = tiny.mini_batch([(3, 0), (1, 2)]).batch
    for index in range(2):
        micro_batch = pack(batch, make_units(batch, False, 100), 4, CPU, Part(2, index))
        assert micro_batch.responses.tolist() == [2]
        assert not micro_batch.sequence.any()
    nothing = pack(batch, [], 4, CPU, Part(2, 1))
    assert nothing.tokens.tolist() == [[0, 0]]
    assert len(nothing.predicts) == len(nothing.responses) == 0
