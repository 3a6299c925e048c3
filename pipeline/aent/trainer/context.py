"""Context parallelism: the ranks of a group share the tokens of every sequence.

Each packed unit, padded to a multiple of 2 C tokens for C ranks, is cut into 2 C equal chunks, and
rank r has chunks r and 2 C - 1 - r: with causal attention, all ranks then compute equally many
pairs ("zigzag"; Transformer Engine's DualChunkSwap, Megatron's ``get_batch_on_this_cp_rank``). The
padding follows a unit's last response, where no token of the unit sees it.

The local attention gathers the keys and values of all ranks and computes only its own queries (the
all-gather form of Llama 3, arXiv 2407.21783, section 3.3.2). Transformer Engine passes keys and
values from rank to rank, and derives its tokens from ``cu_seqlens`` of the padded units. This was
not run, since it needs several GPUs; tests compare the order of tokens with Megatron's rotation of
packed sequences, which is made for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from aent.trainer.segments import Run


@dataclass(frozen=True)
class Part:
    """The part of every unit that a rank has."""

    size: int = 1  # of the context-parallel group
    index: int = 0

    @property
    def multiple(self) -> int:
        """Each unit is padded to a multiple of this number of tokens."""
        return 2 * self.size if self.size > 1 else 1

    def chunks(self, sizes: Sequence[int]) -> list[slice]:
        """This rank's chunks, in its order, of packed units with these padded sizes."""
        found = []
        for begin, end in pairwise(accumulate(sizes, initial=0)):
            length = (end - begin) // (2 * self.size)
            for number in (self.index, 2 * self.size - 1 - self.index):
                first = begin + number * length
                found.append(slice(first, first + length))
        return found

    def places(self, sizes: Sequence[int]) -> Tensor:
        """[T / size] int64 on the CPU: positions of this rank's packed tokens, in its order."""
        if self.size == 1:
            return torch.arange(sum(sizes))
        return torch.cat([torch.arange(c.start, c.stop) for c in self.chunks(sizes)])

    def runs(self, runs: Sequence[Run]) -> list[Run]:
        """This rank's part of the runs of whole units, cut where its chunks begin and end, in the
        order of ``places``."""
        lengths: dict[int, int] = {}
        for run in runs:
            lengths[run.unit] = lengths.get(run.unit, 0) + run.tokens
        ends = list(accumulate(run.tokens for run in runs))
        found = []
        for chunk in self.chunks(list(lengths.values())):
            first = bisect_right(ends, chunk.start)
            for run, end in zip(runs[first:], ends[first:]):
                begin = end - run.tokens
                if begin >= chunk.stop:
                    break
                low, high = max(begin, chunk.start), min(end, chunk.stop)
                found.append(replace(run, position=run.position + low - begin, tokens=high - low))
        return found


WHOLE = Part()


def gathered(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [T, groups, d] of all ranks, one after another, from each rank's [T / size,
    groups, d]. Collective over the context-parallel group, as is its backward, which sums."""
    both = gather_from_sequence_parallel_region(
        torch.cat([key, value], dim=-1), group=parallel_state.get_context_parallel_group()
    )
    return both.split([key.shape[-1], value.shape[-1]], dim=-1)
