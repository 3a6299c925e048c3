"""One micro-batch as Megatron sees it: units of sequences packed one after the other.

A unit is [prompt][response 1][response 2]..., its prompt computed once for all of its responses:
Prefix Grouper's shared prefix (arXiv 2506.05433), here with a mask in one attention instead of
two attentions. A sequence that shares nothing is a unit with one response.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from aent.data.batch import Batch
from aent.data.flat import to_device
from aent.trainer.partition import Unit
from aent.trainer.segments import Run, Visible, runs_of


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's cu_seqlens, and what the local attention needs besides, computed once.

    Megatron's sequences are units here. ``positions`` [T]: position of each token in its own
    sequence. ``runs``: whose they are. ``visible``: which of them attend to which; ``rotations``:
    cosines and sines [T, 1, head_dim] of every rotary embedding: of the local attention alone.
    """

    positions: Tensor | None = None
    runs: list[Run] = field(default_factory=list)
    visible: Visible | None = None
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
    longest = int(sizes.max())
    row = torch.repeat_interleave(torch.arange(len(units)), sizes)
    place = torch.arange(len(row))
    positions = torch.cat([torch.arange(b, b + n) for p, r in units for b, n in _runs(p, r)])
    first = positions == prompts[row]  # of a response
    previous = torch.where(first, cu_seqlens[row] + positions, place) - 1
    cu = to_device(cu_seqlens.int(), device)
    packed = PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu,
        cu_seqlens_kv=cu,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        positions=to_device(positions, device),
        runs=runs_of(units),
    )
    return packed, previous


def _runs(prompt: int, responses: list[int]) -> list[tuple[int, int]]:
    """(first position, tokens) of the prompt and of each response, which all continue it."""
    return [(0, prompt), *((prompt, n) for n in responses)]
