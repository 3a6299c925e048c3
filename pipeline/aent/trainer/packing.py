"""One micro-batch as Megatron sees it: units of sequences packed one after the other.

A unit is [prompt][response 1][response 2]..., its prompt computed once for all of its responses:
Prefix Grouper's shared prefix (arXiv 2506.05433), here with a mask in one attention instead of
two attentions. A sequence that shares nothing is a unit with one response.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from aent.data.batch import Batch
from aent.data.flat import to_device
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
    sequence: Tensor  # [N] int64 in [0, N): which response of this micro-batch, in packed order
    index: Tensor  # [N] int64, on the CPU: their places in the mini-batch


@dataclass
class Packing:
    """The micro-batches of one rank, each packed when Megatron's schedule asks for it: on a GPU
    while the one before runs. What was packed is not kept, but for the places of its tokens."""

    batch: Batch
    units: list[list[Unit]]  # of each micro-batch
    multiple: int
    device: torch.device
    flops: int = 0  # model FLOPs of a forward of all ranks' micro-batches
    indices: list[Tensor] = field(default_factory=list)  # ``MicroBatch.index`` of those packed

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[MicroBatch]:
        for units in self.units:
            micro_batch = pack(self.batch, units, self.multiple, self.device)
            self.indices.append(micro_batch.index)
            yield micro_batch


def pack(batch: Batch, units: list[Unit], multiple: int, device: torch.device) -> MicroBatch:
    """Pack these units of ``batch``, padded at the end to a multiple of ``multiple`` tokens.

    The padding is one more unit of token 0, without response tokens. No units at all (a
    data-parallel rank without work) make a micro-batch of padding. The cost is that of these units,
    whatever the size of the batch (``benchmarks/packing.py``), and nothing waits for the device.
    """
    pieces, layout = [torch.empty(0, dtype=torch.int64)], []
    for unit in units:
        first = unit.spans[0][0]
        responses = [torch.arange(start + unit.prompt, end) for start, end in unit.spans]
        pieces += [torch.arange(first, first + unit.prompt), *responses]
        layout.append((unit.prompt, [len(r) for r in responses]))
    source = torch.cat(pieces)
    padding = -len(source) % multiple if len(source) else multiple
    tokens = torch.nn.functional.pad(batch.tokens[source], (0, padding))
    predicted = batch.loss_mask[source].nonzero().squeeze(1)
    packed, previous = lay_out(layout + [(padding, [])] * (padding > 0), device)
    index = source[predicted]
    return MicroBatch(
        tokens=to_device(tokens[None], device),
        packed=packed,
        predicts=to_device(previous[predicted], device),
        targets=to_device(batch.tokens[index], device),
        sequence=to_device(_owners(layout)[predicted], device),
        index=index,
    )


def _owners(layout: list[tuple[int, list[int]]]) -> Tensor:
    """[T]: the number of the response that each packed token belongs to, 0 on prompts; responses
    without a token have none."""
    sizes, owners, count = [], [], 0
    for prompt, responses in layout:
        present = [n for n in responses if n]
        sizes += [prompt, *present]
        owners += [0, *range(count, count + len(present))]
        count += len(present)
    return torch.repeat_interleave(*(torch.tensor(x, dtype=torch.int64) for x in (owners, sizes)))


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
    tensors = {"positions": positions}
    if count * longest != len(row):
        tensors |= {"flat_index": flat_index, "padded_index": padded_index}
    if any(len(responses) > 1 for _, responses in units):
        response = torch.where(positions < prompts[row], 0, first.cumsum(0))  # 0: of a prompt
        tensors["mask"] = _mask(response[padded_index].view(count, longest))
    cu = to_device(cu_seqlens.int(), device)
    optional: dict[str, Any] = {name: to_device(value, device) for name, value in tensors.items()}
    packed = PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu,
        cu_seqlens_kv=cu,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        batch_shape=(count, longest),
        longest=int(positions.max()) + 1,
        **optional,
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
