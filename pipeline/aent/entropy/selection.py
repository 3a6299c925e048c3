"""The clamped set: which K tokens of a vocabulary, sharded over ranks, a clamped entropy keeps.

The K tokens with the largest logits are kept; among equal logits (-0.0 equals 0.0) the lower token
id is. The set is stored as two numbers per token, a threshold and a tie cut, never as a mask, and
is exact: the same, bit for bit, for every way of cutting the vocabulary into shards.

``search`` finds it by counting alone. Whether a value v lies at or below the K-th largest logit
shows in one number, the count of logits >= v, and counts add up over shards. So the search keeps a
bracket per token, whose ends are floating-point numbers seen as integers in the same order:

1. a sample of each shard proposes a narrow bracket, its counts prove or refute it;
2. a pivot interpolated by rank between the ends narrows it;
3. if a few of these did not settle it, the ends move onto the nearest logits, so that ties and gaps
   end the search rather than prolong it, and every second pivot bisects the integers, which bounds
   the number of rounds for any distribution.

It ends when a count equals K, or when one value is left, whose ties are cut by token id. Every
other way falls back on it: the backends (kernels/) and, over ranks, sharded.py select among the few
logits inside a bracket, and rows for which the bracket or a buffer is too small are searched here.
The authors of the method (AEnt, arXiv 2509.03493) define the same set up to ties.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy.kernels.interface import NO_CUT
from aent.entropy.shard import VocabShard

# Elements of one temporary: a few of them stay in cache, and none reaches the 32 MB from which on
# the allocator takes fresh pages every time.
CHUNK_ELEMENTS = 5 << 18
SAMPLE_SIZE = 4096  # columns of a shard that propose the first bracket
PATIENCE = 6  # rounds of interpolation before the slower, bounded ways to narrow a bracket
SMALLEST_SAMPLE = 64  # a block narrower than this proposes nothing
TIE_BLOCK = 512  # columns over which ties are counted before one block of them is looked at

_KEY_DTYPE = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def row_slices(rows: int, width: int) -> Iterator[slice]:
    """Cut ``rows`` rows of ``width`` columns into slices of about CHUNK_ELEMENTS elements."""
    step = max(1, CHUNK_ELEMENTS // max(1, width))
    for first in range(0, rows, step):
        yield slice(first, min(rows, first + step))


def search(x: Tensor, dtype: torch.dtype, k: int, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Find the ``k`` largest logits of every row over all shards, lower ids first among equals.

    Args:
        x: [N, shard.width] fp32 or float64, without NaN (a row with NaN ends with some set).
        dtype: that x had before it was widened; its numbers are the ones searched.
        k: in [1, shard.vocab_size].

    Returns:
        threshold, of x's dtype, the same on all ranks: kept are the logits above it and those equal
        to it with a column up to cut. cut: int32, global ids, NO_CUT where all ties of this shard
        are kept and -1 where none is: ties are numbered by rank and then by column.

    Collective over ``shard.group``, in as many rounds as the slowest row needs.
    """
    state = _Search(x, dtype, k, shard)
    state.run()
    threshold = value_of(state.low, dtype).to(x.dtype)
    cut = torch.full_like(state.low, NO_CUT, dtype=torch.int32)
    tied = (state.count_low > k).nonzero().squeeze(1)
    if tied.numel():
        ties_of, wanted = threshold[tied], k - state.count_high[tied]
        cut[tied] = _tie_cut(_rows_of(x, tied), ties_of, wanted, shard)
    return threshold, cut


class _Search:
    """A bracket per row: low <= key of the K-th largest logit < high, with the counts that say so.

    low, high: int64 [N] keys. count_low, count_high: int64 [N], logits >= low (at least K of them)
    and >= high (fewer than K). All of it is the same on every rank; a row is settled when
    count_low is K, or when low and high are neighbors.
    """

    def __init__(self, x: Tensor, dtype: torch.dtype, k: int, shard: VocabShard) -> None:
        self.x, self.dtype, self.k, self.shard = x, dtype, k, shard
        self.buffer = torch.empty_like(x)
        rows = x.shape[0]
        infinity = torch.tensor(float("inf"), dtype=dtype, device=x.device)
        self.low = key_of(-infinity).repeat(rows)
        self.high = key_of(infinity).repeat(rows) + 1
        self.count_low = torch.full_like(self.low, shard.vocab_size)
        self.count_high = torch.zeros_like(self.low)

    def run(self) -> None:
        ends = self.shard.all_reduce(propose(self.x, self.k / self.shard.vocab_size), _MAX)
        high, low = ends[0].to(self.dtype), (-ends[1]).to(self.dtype)
        rows = self._open(torch.arange(self.low.numel(), device=self.low.device))
        for end, beyond in ((low, 0), (high, 1)):
            self._take(rows, key_of(end)[rows] + beyond)
            rows = self._open(rows)
        turn = 0
        while rows.numel():
            if turn >= PATIENCE and turn % 2 == 0:
                self._move_ends_to_logits(rows)
                rows = self._open(rows)
            self._take(rows, self._pivots(rows, bisect=turn >= PATIENCE and turn % 2 == 1))
            rows = self._open(rows)
            turn += 1

    def _open(self, rows: Tensor) -> Tensor:
        """Return those of ``rows`` that are not settled yet."""
        low, high = self.low[rows], self.high[rows]
        return rows[(self.count_low[rows] != self.k) & (high > low + 1)]

    def _take(self, rows: Tensor, pivots: Tensor) -> None:
        """Make each pivot inside its row's bracket one of the ends, according to its count."""
        counts = self.shard.all_reduce(self._count_at_least(rows, pivots))
        low, high = self.low[rows], self.high[rows]
        inside = (pivots > low) & (pivots < high)
        raises_low, lowers_high = inside & (counts >= self.k), inside & (counts < self.k)
        self.low[rows] = torch.where(raises_low, pivots, low)
        self.high[rows] = torch.where(lowers_high, pivots, high)
        self.count_low[rows] = torch.where(raises_low, counts, self.count_low[rows])
        self.count_high[rows] = torch.where(lowers_high, counts, self.count_high[rows])

    def _count_at_least(self, rows: Tensor, keys: Tensor) -> Tensor:
        """Count the logits of row rows[i] whose key is keys[i] or more: int64 [len(rows)]."""
        bounds = value_of(keys, self.dtype).to(self.x.dtype)
        counts = torch.empty_like(keys)
        for part, x in self._parts(rows):
            # Adding up ones in floating point is several times faster than counting a mask, and
            # exact below 2^24 columns a shard.
            ones = torch.ge(x, bounds[part, None], out=self.buffer[: x.shape[0]])
            counts[part] = ones.sum(dim=1).long()
        return counts

    def _pivots(self, rows: Tensor, bisect: bool) -> Tensor:
        """Return a key strictly inside the bracket of each of ``rows``."""
        low, high = self.low[rows], self.high[rows]
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # low + high may overflow
        # 16-bit logits have few distinct values in a bracket, many times each: halving is quicker.
        if bisect or self.dtype.itemsize == 2:
            return middle
        from_value = value_of(low, self.dtype).double()
        to_value = value_of(high - 1, self.dtype).double()
        count_low, count_high = self.count_low[rows].double(), self.count_high[rows].double()
        share = (count_low - self.k + 0.5) / (count_low - count_high + 1)
        guess = from_value + (to_value - from_value) * share
        key = torch.minimum(torch.maximum(key_of(guess.to(self.dtype)), low + 1), high - 1)
        return torch.where(guess.isfinite(), key, middle)

    def _move_ends_to_logits(self, rows: Tensor) -> None:
        """Raise low to the smallest logit at or above it, lower high to just above the largest."""
        infinity = float("inf")
        low_value = value_of(self.low[rows], self.dtype).to(self.x.dtype)
        last_value = value_of(self.high[rows] - 1, self.dtype).to(self.x.dtype)
        ends = torch.stack([-self.high[rows], self.low[rows] - 1])
        for part, x in self._parts(rows):
            if x.shape[1]:
                smallest = x.masked_fill(x < low_value[part, None], infinity).amin(dim=1)
                largest = x.masked_fill(x > last_value[part, None], -infinity).amax(dim=1)
                ends[0, part] = -key_of(smallest.to(self.dtype))
                ends[1, part] = key_of(largest.to(self.dtype))
        self.shard.all_reduce(ends, _MAX)
        self.low[rows] = torch.maximum(self.low[rows], -ends[0])
        self.high[rows] = torch.minimum(self.high[rows], ends[1] + 1)

    def _parts(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of ``rows`` with the logits of the rows they name."""
        for part in row_slices(rows.numel(), self.x.shape[1]):
            everything = rows.numel() == self.x.shape[0]
            yield part, self.x[part] if everything else self.x.index_select(0, rows[part])


_MAX = dist.ReduceOp.MAX


def propose(x: Tensor, share: float, sample_size: int = SAMPLE_SIZE) -> Tensor:
    """Propose an interval for a quantile of each row, from a sample; see kernels/__init__.py.

    If the wanted quantile of each shard lies between two values, so does that of the whole: hence
    the extremes over the shards.
    """
    rows, width = x.shape
    infinity = float("inf")
    nothing = torch.full((rows,), -infinity, dtype=x.dtype, device=x.device)
    if not width:
        return torch.stack([nothing] * 4)
    # Rounding the step up spreads the sample over all the block.
    sample = x[:, :: -(-width // sample_size)].contiguous()
    size = sample.shape[1]
    most = sample.masked_fill(sample == infinity, -infinity).amax(dim=1)
    least = sample.masked_fill(sample == -infinity, infinity).amin(dim=1)
    if width < SMALLEST_SAMPLE:
        return torch.stack([nothing, nothing, most, -least])
    first, last = sample_ranks(size, share)
    high = -nothing if first < 0 else _nth_largest(sample, first)
    low = nothing if last >= size else _nth_largest(sample, last)
    return torch.stack([high, -low, most, -least])


def sample_ranks(size: int, share: float) -> tuple[int, int]:
    """The places of a sorted sample, from the top, between which the whole's quantile lies, except
    one time in two thousand; a place may lie beyond the sample's ends."""
    margin = 3.5 * (size * share * (1 - share)) ** 0.5 + 2
    return int(size * share - margin), int(size * share + margin)


def _nth_largest(values: Tensor, n: int) -> Tensor:
    """Return the n-th largest (from 0) of each row of ``values`` [N, C]: [N]."""
    return values.kthvalue(values.shape[1] - n, dim=1).values


def _tie_cut(x: Tensor, threshold: Tensor, wanted: Tensor, shard: VocabShard) -> Tensor:
    """Return this rank's cut of rows that keep ``wanted`` ties (int64 [N], over all ranks)."""
    blocks = _tie_blocks(x, threshold)
    ties = torch.zeros(shard.ranks, x.shape[0], dtype=torch.int64, device=x.device)
    ties[shard.rank] = blocks.sum(dim=(1, 2)).long()
    shard.all_reduce(ties)
    here = wanted - ties[: shard.rank].sum(dim=0)
    return cut_at(blocks, here, ties[shard.rank], shard.start)


def _tie_blocks(x: Tensor, threshold: Tensor) -> Tensor:
    """Mark the logits that equal their row's threshold: 1 or 0 in x's dtype, [N, B, TIE_BLOCK]."""
    rows, width = x.shape
    padded = torch.zeros(rows, max(1, -(-width // TIE_BLOCK)) * TIE_BLOCK, dtype=x.dtype).to(x)
    torch.eq(x, threshold[:, None], out=padded[:, :width])
    return padded.view(rows, -1, TIE_BLOCK)


def cut_at(blocks: Tensor, wanted: Tensor, ties: Tensor, start: int) -> Tensor:
    """Return the global id of the wanted[i]-th tie (from 1) of each row, int32 [N].

    blocks: [N, B, TIE_BLOCK], ones where a tie is. ties: how many there are in each row. -1 where
    none is wanted, NO_CUT where all are.
    """
    before = blocks.sum(dim=2).long().cumsum(dim=1)  # ties up to the end of each block
    block = (before < wanted[:, None]).sum(dim=1).clamp_(max=blocks.shape[1] - 1)
    inside = blocks[torch.arange(len(block), device=block.device), block].long().cumsum(dim=1)
    rest = wanted - torch.where(block > 0, before.gather(1, (block[:, None] - 1).clamp(0))[:, 0], 0)
    column = block * TIE_BLOCK + (inside < rest[:, None]).sum(dim=1)
    cut = torch.where(wanted >= ties, NO_CUT, start + column)
    return torch.where(wanted <= 0, -1, cut).int()


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    return x if rows.numel() == x.shape[0] else x.index_select(0, rows)


def key_of(values: Tensor) -> Tensor:
    """Map floating-point numbers to int64 keys of the same order; -0.0 gets the key of 0.0."""
    integer = _KEY_DTYPE[values.dtype]
    bits = (values + 0.0).view(integer)
    return torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits).long()


def value_of(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo key_of: int64 keys to numbers of ``dtype``."""
    integer = _KEY_DTYPE[dtype]
    bits = keys.to(integer)
    return torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits).view(dtype)
