"""One micro-batch as Megatron sees it: units of sequences packed one after the other.

A unit is [prompt][response 1][response 2]..., its prompt computed once for all of its responses:
Prefix Grouper's shared prefix (arXiv 2506.05433), here with a mask in one attention instead of
two attentions. A sequence that shares nothing is a unit with one response.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from aent.data.batch import Batch
from aent.trainer.partition import Unit


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's cu_seqlens, and what the local attention needs besides, computed once.

    Megatron's sequences are units here. ``padded_index`` [B * L]: the packed token in each place
    of the padded layout [B, L] (padding repeats a token); ``flat_index`` [T]: the place of each
    packed token in that layout; both None where all units have one length and the layouts are the
    same. ``positions`` [T]: position of each token in its own sequence; ``longest``: tokens of the
    longest sequence. ``mask`` [B, 1, L, L] fp32: 0 where a token (row) attends to another, else
    -inf; None where every unit has one response: causal. ``window_masks``: the same of layers with
    a sliding window, by its size, where it hides a token. ``rotations``: cosines and sines [T, 1,
    head_dim] of every rotary embedding.
    """

    batch_shape: tuple[int, int] = (0, 0)
    padded_index: Tensor | None = None
    flat_index: Tensor | None = None
    positions: Tensor | None = None
    longest: int = 0
    mask: Tensor | None = None
    window_masks: dict[int, Tensor] = field(default_factory=dict)
    rotations: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class MicroBatch:
    """Input of one forward: T packed tokens, N of them to be predicted. What their loss is made of
    stays with the mini-batch, and is cut by ``index``."""

    tokens: Tensor  # [1, T] int64, T a multiple of the tensor-parallel size
    packed: PackedSequences
    predicts: Tensor  # [N] int64: the place whose hidden state predicts each response token
    targets: Tensor  # [N] int64: the response tokens
    sequence: Tensor  # [N] int64 in [0, N): which response of this micro-batch each belongs to
    index: Tensor  # [N] int64, on the CPU: their places in the mini-batch


def pack(batch: Batch, units: list[Unit], multiple: int, device: torch.device) -> MicroBatch:
    """Pack these units of ``batch``, padded at the end to a multiple of ``multiple`` tokens.

    The padding is one more unit of token 0, without response tokens. No units at all (a
    data-parallel rank without work) make a micro-batch of padding.

    Raises:
        ValueError: if a response token is the first of its sequence: nothing predicts it.
    """
    starts, ends = batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist()
    pieces = [torch.empty(0, dtype=torch.int64)]
    layout = []
    for unit in units:
        first = starts[unit.sequences[0]]
        responses = [torch.arange(starts[s] + unit.prompt, ends[s]) for s in unit.sequences]
        pieces += [torch.arange(first, first + unit.prompt), *responses]
        layout.append((unit.prompt, [len(r) for r in responses]))
    source = torch.cat(pieces)
    padding = -len(source) % multiple if len(source) else multiple
    tokens = torch.nn.functional.pad(batch.tokens[source], (0, padding))
    predicted = batch.loss_mask[source].nonzero().squeeze(1)
    packed, previous = lay_out(layout + [(padding, [])] * (padding > 0), device)
    assert packed.positions is not None
    if (packed.positions.cpu()[predicted] == 0).any():
        raise ValueError("loss_mask: the first token of a sequence is marked as a response token")
    index = source[predicted]
    _, sequence = torch.unique(batch.sequence_of_token[index], return_inverse=True)
    return MicroBatch(
        tokens=tokens[None].to(device),
        packed=packed,
        predicts=previous[predicted].to(device),
        targets=batch.tokens[index].to(device),
        sequence=sequence.to(device),
        index=index,
    )


def lay_out(
    units: list[tuple[int, list[int]]], device: torch.device
) -> tuple[PackedSequences, Tensor]:
    """The layout of units of (prompt tokens, tokens of each response).

    Returns:
        The layout on ``device``, and [T] on the CPU the place of the token before each one in its
        own sequence: for the first token of every response the prompt's last.
    """
    prompts, sizes = (torch.tensor(x) for x in zip(*((p, p + sum(r)) for p, r in units)))
    cu_seqlens = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    count, longest = len(units), int(sizes.max())
    row = torch.repeat_interleave(torch.arange(count), sizes)
    place = torch.arange(len(row))
    positions = torch.cat([torch.arange(b, b + n) for p, r in units for b, n in _runs(p, r)])
    first = positions == prompts[row]  # of a response
    previous = torch.where(first, cu_seqlens[row] + positions, place) - 1
    flat_index = row * longest + place - cu_seqlens[row]
    padded_index = torch.zeros(count * longest, dtype=torch.int64)
    padded_index[flat_index] = place
    tensors: dict[str, Any] = {"positions": positions}
    if count * longest != len(row):
        tensors |= {"flat_index": flat_index, "padded_index": padded_index}
    if any(len(responses) > 1 for _, responses in units):
        response = torch.where(positions < prompts[row], 0, first.cumsum(0))  # 0: of a prompt
        tensors["mask"] = _mask(response[padded_index].view(count, longest))
    cu = cu_seqlens.to(device=device, dtype=torch.int32)
    packed = PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu,
        cu_seqlens_kv=cu,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        batch_shape=(count, longest),
        longest=int(positions.max()) + 1,
        **{name: value.to(device) for name, value in tensors.items()},
    )
    return packed, previous


def _runs(prompt: int, responses: list[int]) -> list[tuple[int, int]]:
    """(first position, tokens) of the prompt and of each response, which all continue it."""
    return [(0, prompt), *((prompt, n) for n in responses)]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """[L, L] fp32, to be added to scores: 0 where a token (row) attends to another, else -inf."""
    return torch.full((length, length), -torch.inf, device=device).triu(1)


def window_mask(packed: PackedSequences, window: int) -> Tensor | None:
    """``packed.mask`` with what a sliding window hides: tokens that are ``window`` or more before
    one in its own sequence. [B, 1, L, L], or [L, L] for all units alike; None if it hides none."""
    assert packed.positions is not None
    if packed.longest <= window:
        return None
    if packed.mask is None:
        length = packed.batch_shape[1]
        place = torch.arange(length, device=packed.positions.device)
        mask = causal_mask(length, packed.positions.device)
    else:  # a response's first token stands behind other responses
        index = packed.padded_index
        place = packed.positions if index is None else packed.positions[index]
        place, mask = place.view(packed.batch_shape)[:, None], packed.mask
    return mask.masked_fill(place[..., :, None] - place[..., None, :] >= window, -torch.inf)


def _mask(response: Tensor) -> Tensor:
    """[B, 1, L, L] fp32: a token attends to its prompt and its own response, up to itself.

    Added to the scores, not boolean: torch would turn it into that in every layer, and keep each
    layer's for the backward.

    Args:
        response: [B, L] a number for each response, 0 on prompts; anything on the padding to the
            right, which nobody attends to, and which attends at least to itself: no empty row.
    """
    query, key = response[:, None, :, None], response[:, None, None, :]
    allowed = ((key == 0) | (key == query)).tril()
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)
