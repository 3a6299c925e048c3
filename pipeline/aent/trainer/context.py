"""Context parallelism: the ranks of a group share the tokens of every sequence.

Each packed unit, padded to a multiple of 2 C tokens for C ranks, is cut into 2 C equal chunks, and
rank r has those numbered r and 2 C - 1 - r: with causal attention every rank then has equally many
pairs to compute ("zigzag"; Transformer Engine's DualChunkSwap, Megatron's
``get_batch_on_this_cp_rank``). The padding stands behind a unit's last response, where no token of
the unit sees it.

The local attention gathers the keys and values of all ranks and computes the queries of its own
(the all-gather form of Llama 3, arXiv 2407.21783, section 3.3.2). Transformer Engine's passes keys
and values on from rank to rank; it reads from ``cu_seqlens`` of the padded units which tokens it
has. Several GPUs, and so Transformer Engine's, were not at hand where this was written: tests hold
the order of tokens against Megatron's rotation of packed sequences, which is made for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from aent.data.flat import to_device


@dataclass(frozen=True)
class Part:
    """Which part of every unit a rank has."""

    size: int = 1  # of the context-parallel group
    index: int = 0

    @property
    def multiple(self) -> int:
        """What the tokens of each unit are padded to a multiple of."""
        return 2 * self.size if self.size > 1 else 1

    def chunks(self, sizes: Sequence[int]) -> list[tuple[slice, slice]]:
        """Of units of these padded sizes, packed one after the other, this rank's chunks in its
        order: where a unit begins up to where the chunk ends, and the chunk alone."""
        found = []
        for begin, end in pairwise(accumulate(sizes, initial=0)):
            length = (end - begin) // (2 * self.size)
            for number in (self.index, 2 * self.size - 1 - self.index):
                first = begin + number * length
                last = first + length
                found.append((slice(begin, last), slice(first, last)))
        return found

    def places(self, sizes: Sequence[int]) -> Tensor:
        """[T / size] int64 on the CPU: the packed tokens of this rank, in its order."""
        if self.size == 1:
            return torch.arange(sum(sizes))
        return torch.cat([torch.arange(c.start, c.stop) for _, c in self.chunks(sizes)])


WHOLE = Part()


@dataclass
class Chunks:
    """What the local attention of one rank needs of all packed tokens.

    Attributes:
        order: [T] int64, the place of each packed token among those gathered from all ranks.
        seen: of each chunk of this rank, in its order: the packed tokens of its unit up to its end,
            and how many of them, the last, are the chunk's.
        positions: [T], of each token in its own sequence; longest: tokens of the longest sequence.
        response: [T], a number for each response, 0 on prompts; None where no prompt is shared.
    """

    order: Tensor
    seen: list[tuple[slice, int]]
    positions: Tensor
    longest: int
    response: Tensor | None
    _masks: dict[int | None, list[Tensor | None]] = field(default_factory=dict)

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor | None]:
        """Of each chunk [n, m], to be added to the scores of its n tokens with the m that its unit
        has up to its end: 0 where one attends to another, else -inf; None where it attends to all
        up to itself. Made once for all layers with this window."""
        if window is not None and self.longest <= window:
            window = None
        if window not in self._masks:
            plain = window is None and self.response is None
            self._masks[window] = [
                None if plain else self._mask(where, own, window).to(dtype)
                for where, own in self.seen
            ]
        return self._masks[window]

    def _mask(self, where: slice, own: int, window: int | None) -> Tensor:
        position = self.positions[where]
        mask = causal_mask(own, len(position), position.device)
        if self.response is not None:
            response = self.response[where]
            others = (response != 0) & (response != response[-own:, None])
            mask.masked_fill_(others, -torch.inf)
        if window is not None:
            mask.masked_fill_(position[-own:, None] - position >= window, -torch.inf)
        return mask


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """[n, m] fp32, to be added to the scores of the last n of m tokens: 0 where one (row) attends
    to another, else -inf."""
    return torch.full((queries, keys), -torch.inf, device=device).triu(keys - queries + 1)


def chunks_of(
    part: Part,
    sizes: Sequence[int],
    positions: Tensor,
    response: Tensor | None,
    device: torch.device,
) -> Chunks:
    """For units of these padded sizes; positions and response of all their tokens, on the CPU."""
    everyones = [Part(part.size, index).places(sizes) for index in range(part.size)]
    order = torch.empty(len(positions), dtype=torch.int64)
    order[torch.cat(everyones)] = torch.arange(len(positions))
    return Chunks(
        order=to_device(order, device),
        seen=[(seen, own.stop - own.start) for seen, own in part.chunks(sizes)],
        positions=to_device(positions, device),
        longest=int(positions.max()) + 1,
        response=None if response is None else to_device(response, device),
    )


def gathered(key: Tensor, value: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Keys and values [T, groups, d] of all ranks, as they are packed, from this rank's [T / size,
    groups, d]. Collective over the context-parallel group; so is its backward, which sums."""
    both = gather_from_sequence_parallel_region(
        torch.cat([key, value], dim=-1), group=parallel_state.get_context_parallel_group()
    )
    return both.index_select(0, chunks.order).split([key.shape[-1], value.shape[-1]], dim=-1)
