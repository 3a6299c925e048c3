"""The clamped set of whole rows by torch operations, a few rows at a time.

It counts, as selection.search does: a sample proposes a bracket around the K-th largest logit, and
pivots chosen by rank narrow it. Here the counts are kept for each block of columns. Once few
candidates are left, the blocks that hold them are known, and only those are read again. All rows
take part in every round, because selecting the unfinished ones would cost more than counting for
all. Decisions about a few rows are made in Python, which costs less than a torch call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aent.entropy import selection
from aent.entropy.kernels.interface import NO_CUT
from aent.entropy.shard import VocabShard

SAMPLE_SIZE = 1024  # columns of a row that give the first guess
BLOCK = 128  # columns counted together
FEW = 64  # candidates left when their blocks are read
ROUNDS = 12  # rows that are unfinished then go to selection.search, which ends for any distribution


def select(x: Tensor, dtype: torch.dtype, k: int, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Find threshold and cut (see ``selection.search``) of rows that are whole on this rank.

    Args:
        x: [n, width] fp32 or float64, width above 0.
        dtype: that x had before it was widened.
        k: in [1, width].
        buffer: like x, to be overwritten.
    """
    brackets = _sampled(x, k)
    counts: list[Tensor] = []  # by round
    # 16-bit logits have few distinct values in a bracket: halving is faster
    halve = dtype.itemsize == 2
    for _ in range(ROUNDS):
        wanted = torch.tensor([b.pivot(k, halve) for b in brackets], dtype=torch.float64)
        pivots = wanted.to(dtype).to(x)
        for bracket, pivot in zip(brackets, pivots.tolist()):
            bracket.closed = not bracket.low < pivot < bracket.high  # nor is it NaN
        if all(b.closed or b.at_least - b.above <= FEW for b in brackets):
            break
        counts.append(_count(x, pivots, buffer))
        _take(brackets, pivots, counts, k)
    return _finish(x, dtype, k, brackets, counts)


@dataclass
class _Bracket:
    """low <= the K-th largest logit < high; how many logits lie at or above each, and in which
    round that was counted (-1: not yet)."""

    guess: float  # estimate of the K-th largest, from a sample
    slope: float  # by how much the sample falls from one logit of the row to the next
    low: float = -math.inf
    high: float = math.inf
    at_least: float = math.inf
    above: float = 0
    low_round: int = -1
    high_round: int = -1
    closed: bool = False  # the next pivot would not lie between

    def pivot(self, k: int, halve: bool) -> float:
        """The next pivots: by rank slightly beyond the K-th as seen from the nearer end, so that
        the other end comes closer too."""
        from_low, from_high = self.at_least - k, k - self.above
        if self.low_round < 0 and self.high_round < 0:
            return self.guess
        if self.low_round < 0:
            return self.high - self.slope * (1.2 * from_high + 2 * math.sqrt(from_high) + 4)
        if self.high_round < 0:
            return self.low + self.slope * (1.2 * from_low + 2 * math.sqrt(from_low) + 4)
        if halve:
            return (self.low + self.high) / 2
        beyond = 2 * math.sqrt(min(from_low, from_high)) + 4
        beyond = min(beyond, max(from_low, from_high) / 2)
        target = from_low + (beyond if from_low < from_high else -beyond)
        return self.low + (self.high - self.low) * target / (self.at_least - self.above)


def _sampled(x: Tensor, k: int) -> list[_Bracket]:
    """Return brackets that only have a sample's estimate."""
    width = x.shape[1]
    high, low, most, least = selection.propose(x, k / width, SAMPLE_SIZE)
    high, low = torch.minimum(high, most), torch.maximum(-low, -least)
    size = -(-width // -(-width // SAMPLE_SIZE))
    first, last = selection.sample_ranks(size, k / width)
    ranks = (min(last, size) - max(first, 0)) * width / size
    slopes = ((high - low).clamp(min=0) / ranks).tolist()
    return [_Bracket(guess, slope) for guess, slope in zip(((low + high) / 2).tolist(), slopes)]


def _count(x: Tensor, bounds: Tensor, buffer: Tensor) -> Tensor:
    """Count the logits at or above each row's bound by blocks of columns: [n, blocks], x's dtype.

    Adding up ones in floating point is several times faster than counting a mask.
    """
    ones = torch.ge(x, bounds[:, None], out=buffer)
    whole = x.shape[1] // BLOCK * BLOCK
    counts = ones[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=2)
    return torch.cat([counts, ones[:, whole:].sum(dim=1, keepdim=True)], dim=1)


def _take(brackets: list[_Bracket], pivots: Tensor, counts: list[Tensor], k: int) -> None:
    """Make each pivot inside its bracket one of the ends, according to the newest count."""
    number = counts[-1].sum(dim=1).tolist()
    for b, pivot, count in zip(brackets, pivots.tolist(), number):
        if b.closed:
            continue
        if count >= k:
            b.low, b.at_least, b.low_round = pivot, count, len(counts) - 1
        else:
            b.high, b.above, b.high_round = pivot, count, len(counts) - 1


def _finish(
    x: Tensor, dtype: torch.dtype, k: int, brackets: list[_Bracket], counts: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Finish the rows from what is left in their brackets; search rows with too much left."""
    rest = [row for row, b in enumerate(brackets) if not _is_settled(b, dtype)]
    if len(rest) == len(brackets):
        return selection.search(x, dtype, k, VocabShard(0, x.shape[1], x.shape[1], None))
    rows = torch.arange(len(brackets), device=x.device)
    rounds = torch.tensor([[b.low_round, b.high_round] for b in brackets], device=x.device)
    by_round = torch.stack(counts)
    blocks = (by_round[rounds[:, 0], rows] - by_round[rounds[:, 1], rows]).long()
    blocks[rest] = 0
    ends = torch.tensor([[b.low, b.high] for b in brackets], dtype=torch.float64).to(x)
    wanted = torch.tensor([k - int(b.above) for b in brackets], device=x.device)
    threshold, cut = _among_candidates(x, ends[:, :1], ends[:, 1:], wanted, blocks)
    if rest:
        alone = VocabShard(0, x.shape[1], x.shape[1], None)
        threshold[rest], cut[rest] = selection.search(x[rest], dtype, k, alone)
    return threshold, cut


def _is_settled(b: _Bracket, dtype: torch.dtype) -> bool:
    """Whether few candidates are left, or all of them are equal."""
    if b.low_round < 0 or b.high_round < 0:
        return False
    middle = torch.tensor((b.low + b.high) / 2, dtype=torch.float64).to(dtype).item()
    return b.at_least - b.above <= FEW or not b.low < middle < b.high


def _among_candidates(
    x: Tensor, low: Tensor, high: Tensor, wanted: Tensor, blocks: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the wanted-th largest (from 1) of the logits in [low, high), ``blocks`` [n, B] counted.

    low, high: [n, 1]. Returns threshold and cut, which are right for rows whose candidates are few
    or all equal, and meaningless for rows without any.
    """
    rows, total = torch.arange(len(low), device=x.device), blocks.sum(dim=1)
    # If many are equal, only the block with the last kept one is needed.
    many = total > FEW
    reached = blocks.cumsum(dim=1)
    last = (reached < wanted[:, None]).sum(dim=1).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(many, reached[rows, last] - blocks[rows, last], 0)
    looked_at = (blocks > 0) & ~many[:, None]
    looked_at[rows, last] |= many
    row, block = looked_at.nonzero(as_tuple=True)
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=x.device)
    values = x[row[:, None], columns.clamp(max=x.shape[1] - 1)]
    inside = (values >= low[row]) & (values < high[row]) & (columns < x.shape[1])
    at, lane = inside.nonzero(as_tuple=True)
    row, columns, values = row[at], columns[at, lane], values[at, lane]

    number = torch.bincount(row, minlength=len(low))
    place = torch.arange(len(row), device=x.device) - (number.cumsum(0) - number)[row]
    candidates = x.new_full((len(low), max(BLOCK, FEW) + 1), -torch.inf)
    ids = torch.full(candidates.shape, NO_CUT, device=x.device)
    candidates[row, place], ids[row, place] = values, columns
    # stable: the lower of equal columns comes first
    candidates, order = candidates.sort(dim=1, descending=True, stable=True)
    nth = (wanted - before - 1).clamp(0, candidates.shape[1] - 2)
    threshold = candidates[rows, nth]
    more = (candidates[rows, nth + 1] == threshold) | (many & (wanted < total))
    return threshold, torch.where(more, ids[rows, order[rows, nth]], NO_CUT).int()
