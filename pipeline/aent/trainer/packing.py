"""One micro-batch as Megatron sees it: sequences packed one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from aent.batch import Batch


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's cu_seqlens, and what the local attention needs besides, computed once.

    ``padded_index`` [B * L]: the packed token in each place of the padded layout [B, L] (padding
    repeats a token); ``flat_index`` [T]: the place of each packed token in that layout; both None
    where all sequences have one length and the layouts are the same. ``positions`` [T]: position
    of each token in its sequence. ``cos``, ``sin`` [T, 1, head_dim]: rotary embedding.
    """

    batch_shape: tuple[int, int] = (0, 0)
    padded_index: Tensor | None = None
    flat_index: Tensor | None = None
    positions: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None


@dataclass
class MicroBatch:
    """Input of one forward: T packed tokens, N of them to be predicted."""

    tokens: Tensor  # [1, T] int64, T a multiple of the tensor-parallel size
    packed: PackedSequences
    predicts: Tensor  # [N] int64: the place whose hidden state predicts each response token
    index: Tensor  # [N] int64: the response tokens' places in the mini-batch
    fields: dict[str, Tensor]  # [N] each: targets and the Batch's per-token fields


TOKEN_FIELDS = (
    "behaviour_logprobs", "advantages", "old_logprobs", "reference_logprobs", "importance",
    "policy_weight", "entropy_weight",
)  # fmt: skip


def pack(batch: Batch, sequences: list[int], multiple: int, device: torch.device) -> MicroBatch:
    """Pack these sequences of ``batch``, padded at the end to a multiple of ``multiple`` tokens.

    The padding is one more sequence of token 0, without response tokens. No sequences at all
    (a data-parallel rank without work) make a micro-batch of padding.

    Raises:
        ValueError: if a response token is the first of its sequence: nothing predicts it.
    """
    starts, ends = batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist()
    pieces = [torch.arange(starts[s], ends[s]) for s in sequences]
    lengths = [len(p) for p in pieces]
    source = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
    total = len(source)
    padding = -total % multiple if total else multiple
    tokens = torch.nn.functional.pad(batch.tokens[source], (0, padding))
    predicted = batch.loss_mask[source].nonzero().squeeze(1)
    packed = pack_lengths(lengths + [padding] * (padding > 0), device)
    assert packed.positions is not None
    if (packed.positions.cpu()[predicted] == 0).any():
        raise ValueError("loss_mask: the first token of a sequence is marked as a response token")
    index = source[predicted]
    fields = {"targets": batch.tokens[index]}
    for name in TOKEN_FIELDS:
        value = getattr(batch, name)
        if value is not None:
            fields[name] = value[index]
    return MicroBatch(
        tokens=tokens[None].to(device),
        packed=packed,
        predicts=(predicted - 1).to(device),
        index=index,
        fields={name: value.to(device) for name, value in fields.items()},
    )


def pack_lengths(lengths: list[int], device: torch.device) -> PackedSequences:
    """The layout of sequences of these lengths."""
    sizes = torch.tensor(lengths)
    cu_seqlens = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    count, longest = len(lengths), int(sizes.max())
    row = torch.repeat_interleave(torch.arange(count), sizes)
    positions = torch.arange(int(sizes.sum())) - cu_seqlens[row]
    ragged: dict[str, Any] = {}
    if count * longest != len(row):
        flat_index = row * longest + positions
        padded_index = torch.zeros(count * longest, dtype=torch.int64)
        padded_index[flat_index] = torch.arange(len(row))
        ragged = {"flat_index": flat_index.to(device), "padded_index": padded_index.to(device)}
    cu = cu_seqlens.to(device=device, dtype=torch.int32)
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu,
        cu_seqlens_kv=cu,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        batch_shape=(count, longest),
        positions=positions.to(device),
        **ragged,
    )
