"""One micro-batch in Megatron's form: units of sequences, packed one after the other.

A unit is [prompt][response 1][response 2]..., with a prompt computed once for all its responses:
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
from aent.trainer.context import WHOLE, Part
from aent.trainer.partition import Unit
from aent.trainer.segments import Run, Visible, runs_of


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's cu_seqlens, and what else the local attention needs, computed once.

    Megatron's sequences are units here. ``positions`` [T]: position of each token in its own
    sequence. Only for the local attention: ``runs`` (unit and response of the tokens), ``visible``
    (which of them attend to which) and ``rotations`` (cosines and sines [T, 1, head_dim] of every
    rotary embedding).

    If context-parallel ranks share the units, cu_seqlens are those of whole units, and the rest is
    for this rank's tokens; ``all_runs`` are those of all ranks' tokens, in the ranks' order.
    """

    positions: Tensor | None = None
    runs: list[Run] = field(default_factory=list)
    all_runs: list[Run] | None = None
    visible: Visible | None = None
    rotations: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class MicroBatch:
    """Input of one forward: T packed tokens, N of them to be predicted. The terms of their loss
    stay with the mini-batch and are selected by ``index``. With context parallelism T and N are
    this rank's own, the R responses those of all ranks."""

    tokens: Tensor  # [1, T] int64, T a multiple of the tensor-parallel size
    packed: PackedSequences
    predicts: Tensor  # position whose hidden state predicts each response token
    targets: Tensor  # [N] int64: the response tokens
    sequence: Tensor  # response of this micro-batch, in packed order
    responses: Tensor  # tokens to be predicted in each response
    index: Tensor  # positions in the mini-batch


@dataclass
class Packing:
    """The micro-batches of one rank, each packed when Megatron's schedule asks for it: on a GPU
    while the one before runs. Packed ones are not kept, only the positions of their tokens."""

    batch: Batch
    units: list[list[Unit]]  # of each micro-batch
    multiple: int
    device: torch.device
    part: Part = WHOLE
    flops: int = 0  # model FLOPs of a forward of all ranks' micro-batches
    indices: list[Tensor] = field(default_factory=list)  # ``MicroBatch.index`` of those packed

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[MicroBatch]:
        for units in self.units:
            micro_batch = pack(self.batch, units, self.multiple, self.device, self.part)
            self.indices.append(micro_batch.index)
            yield micro_batch


def pack(
    batch: Batch,
    units: list[Unit],
    multiple: int,
    device: torch.device,
    part: Part = WHOLE,
) -> MicroBatch:
    """Pack these units of ``batch``, padded at the end to a multiple of ``multiple`` tokens, which
    must be a multiple of ``part.multiple``.

    The padding is one more unit of tokens 0, without response tokens. If there are no units (a
    data-parallel rank without work), the micro-batch is padding. Each context-parallel rank gets
    its part of the tokens, and predicts those whose predecessor it has. The cost depends on these
    units, not on the batch's size (``benchmarks/packing.py``), and nothing waits for the device.
    """
    pieces, layout, count = [torch.empty(0, dtype=torch.int64)], [], 0
    owners: list[tuple[int, int]] = []  # of each piece: the number of its response, and its tokens
    for unit in units:
        first = unit.spans[0][0]
        responses = [torch.arange(start + unit.prompt, end) for start, end in unit.spans]
        padding = -unit.tokens % part.multiple
        pieces += [torch.arange(first, first + unit.prompt), *responses, _padding(padding)]
        sizes = [len(r) for r in responses]
        present = [n for n in sizes if n]
        owners += [(0, unit.prompt), *enumerate(present, count), (0, padding)]
        count += len(present)
        layout.append((unit.prompt, [*sizes[:-1], sizes[-1] + padding]))
    length = sum(map(len, pieces))
    if padding := -length % multiple if length else multiple:
        pieces.append(_padding(padding))
        owners.append((0, padding))
        layout.append((padding, []))
    source = torch.cat(pieces)
    real = source >= 0
    packed, previous = lay_out(layout, device, part)
    predicted = (real & batch.loss_mask[source]).nonzero().squeeze(1)
    sequence = torch.repeat_interleave(*torch.tensor(owners).T)[predicted]
    tokens, predicts = torch.where(real, batch.tokens[source], 0), previous[predicted]
    index, of_own = source[predicted], sequence
    if part.size > 1:
        mine = part.places([prompt + sum(sizes) for prompt, sizes in layout])
        here = torch.full((len(source),), -1)
        here[mine] = torch.arange(len(mine))
        tokens, predicts = tokens[mine], here[predicts]
        own = predicts >= 0
        index, predicts, of_own = index[own], predicts[own], sequence[own]
    return MicroBatch(
        tokens=to_device(tokens[None], device),
        packed=packed,
        predicts=to_device(predicts, device),
        targets=to_device(batch.tokens[index], device),
        sequence=to_device(of_own, device),
        responses=to_device(torch.bincount(sequence, minlength=count), device),
        index=index,
    )


def _padding(tokens: int) -> Tensor:
    return torch.full((tokens,), -1)


def lay_out(
    units: list[tuple[int, list[int]]],
    device: torch.device,
    part: Part = WHOLE,
) -> tuple[PackedSequences, Tensor]:
    """The layout of units of (prompt tokens, tokens of each response), with their padding.

    Returns:
        The layout on ``device``, and [T] on the CPU, for all ranks' tokens: the position of the
        token before each one in its own sequence (for a response's first token, the prompt's last).
    """
    prompts, sizes = (torch.tensor(x) for x in zip(*((p, p + sum(r)) for p, r in units)))
    cu_seqlens = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    longest = int(sizes.max())
    row = torch.repeat_interleave(torch.arange(len(units)), sizes)
    place = torch.arange(len(row))
    positions = torch.cat([torch.arange(b, b + n) for p, r in units for b, n in _runs(p, r)])
    first = positions == prompts[row]  # of a response
    previous = torch.where(first, cu_seqlens[row] + positions, place) - 1
    runs, all_runs = runs_of(units), None
    if part.size > 1:
        positions = positions[part.places(sizes.tolist())]
        everyones = [Part(part.size, index).runs(runs) for index in range(part.size)]
        runs, all_runs = everyones[part.index], [run for each in everyones for run in each]
    cu = to_device(cu_seqlens.int(), device)
    packed = PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu,
        cu_seqlens_kv=cu,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        positions=to_device(positions, device),
        runs=runs,
        all_runs=all_runs,
    )
    return packed, previous


def _runs(prompt: int, responses: list[int]) -> list[tuple[int, int]]:
    """(first position, tokens) of the prompt and of each response after it."""
    return [(0, prompt), *((prompt, n) for n in responses)]
