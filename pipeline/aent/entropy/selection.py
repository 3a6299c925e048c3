"""The clamped set: which K tokens of a vocabulary, sharded over ranks, a clamped entropy keeps.

The K tokens with the largest logits are kept; among equal logits (-0.0 equals 0.0) the lower token
id is. The set is stored as two numbers per token, a threshold and a tie cut, never as a mask, and
is exact: the same, bit for bit, for every way of cutting the vocabulary into shards.

Method. Whether a value v lies at or below the K-th largest logit shows in one number, the count of
logits >= v, and counts add up over shards. So the search keeps a bracket per token, whose ends are
floating-point numbers seen as integers in the same order, and narrows it by counting:

1. a sample of each shard proposes a narrow bracket, its counts prove or refute it, and the few
   percent of the logits that lie inside are set apart: the rest is not read again;
2. a pivot interpolated by rank between the ends narrows it;
3. where a few of these did not settle it, the ends move onto the nearest logits, by which ties and
   gaps end the search rather than prolong it, and every second pivot bisects the integers, which
   bounds the number of rounds whatever the distribution.

It ends where a count equals K, or where one value is left, whose ties are cut by token id. A round
moves 8 bytes a token for each pivot between the ranks, whatever V and K are. The authors of the
method (AEnt, arXiv 2509.03493) define the same set up to ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# Elements of one temporary: a few of them stay in cache, and none reaches the 32 MB from which on
# the allocator takes fresh pages every time.
CHUNK_ELEMENTS = 1 << 19
BLOCK_CHUNKS = 32  # chunks of rows that are searched together
SAMPLE_SIZE = 2048  # columns of a shard that propose the first bracket
PATIENCE = 6  # rounds of interpolation before the slower, bounded ways to narrow a bracket
SMALLEST_SAMPLE = 64  # a block narrower than this proposes nothing
NO_CUT = torch.iinfo(torch.int64).max  # tie cut of a token whose ties are all kept

_KEY_DTYPE = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True)
class VocabShard:
    """This rank's block of the vocabulary.

    start: global id of the first column. width: columns that are real tokens, the rest of the
    block being padding. vocab_size: real tokens over all ranks. group: the ranks that share the
    vocabulary, None for one rank alone.
    """

    start: int
    width: int
    vocab_size: int
    group: dist.ProcessGroup | None

    @classmethod
    def locate(
        cls,
        columns: int,
        vocab_size: int | None,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> VocabShard:
        """Find the block from the number of ``columns`` on each rank (one tiny collective).

        Raises ValueError if ``vocab_size`` is not in [1, columns over all ranks].
        """
        widths = [columns]
        rank = 0
        if group is not None:
            rank = dist.get_rank(group)
            shared = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
            shared[rank] = columns
            dist.all_reduce(shared, group=group)
            widths = shared.tolist()
        total = sum(widths)
        real = total if vocab_size is None else vocab_size
        if not 1 <= real <= total:
            raise ValueError(f"vocab_size is {real}, but the logits have {total} columns")
        start = sum(widths[:rank])
        return cls(start, max(0, min(columns, real - start)), real, group)

    def all_reduce(self, tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Reduce ``tensor`` in place over the ranks and return it."""
        if self.group is not None:
            dist.all_reduce(tensor, op=op, group=self.group)
        return tensor


@dataclass(frozen=True)
class KeptSet:
    """Kept are the logits above ``threshold`` and those equal to it with an id up to ``cut``.

    threshold: [N], the logits' dtype. cut: [N] int64 global token ids, NO_CUT where all ties stay.
    Both are the same on all ranks.
    """

    threshold: Tensor
    cut: Tensor

    def mask(self, logits: Tensor, rows: slice, start: int) -> Tensor:
        """Return 1 for the kept tokens of ``rows`` and 0 for the others, over this rank's columns.

        logits: [n, width], those rows, in the dtype the set was selected in or a wider one, which
        is the result's: comparing straight into numbers to multiply by is quicker than by bools.
        """
        threshold = self.threshold[rows, None].to(logits.dtype)
        mask = torch.ge(logits, threshold, out=torch.empty_like(logits))
        if bool((self.cut[rows] != NO_CUT).any()):  # beyond the cut, ties are out
            above = torch.gt(logits, threshold, out=torch.empty_like(logits))
            ids = torch.arange(start, start + logits.shape[1], device=logits.device)
            mask = torch.where(ids <= self.cut[rows, None], mask, above)
        return mask


def row_slices(rows: int, width: int) -> Iterator[slice]:
    """Cut ``rows`` rows of ``width`` columns into slices of about CHUNK_ELEMENTS elements."""
    step = max(1, CHUNK_ELEMENTS // max(1, width))
    for first in range(0, rows, step):
        yield slice(first, min(rows, first + step))


def select_kept(logits: Tensor, k: int, shard: VocabShard) -> KeptSet:
    """Select the ``k`` largest logits of every row over all shards, lower ids first among equals.

    logits: [N, shard.width] fp16, bf16, fp32 or float64, without NaN (a row with NaN ends with
    some set). k: in [1, shard.vocab_size]. Collective over ``shard.group``; nothing differentiable.
    """
    threshold = torch.empty(logits.shape[0], dtype=logits.dtype, device=logits.device)
    cut = torch.full((logits.shape[0],), NO_CUT, device=logits.device)
    # Blocks bound the memory of the candidates; the ranks must agree on them, so the width that
    # counts is the whole vocabulary's.
    for block in row_slices(logits.shape[0], shard.vocab_size // BLOCK_CHUNKS):
        search = _Search(logits[block], k, shard)
        search.run()
        threshold[block] = _value_of(search.low, logits.dtype)
        tied = (search.count_low > k).nonzero().squeeze(1)
        if tied.numel():
            wanted = k - search.count_high[tied]
            ties_of = threshold[block][tied]
            cut[block][tied] = _tie_cut(logits[block], tied, ties_of, wanted, shard)
    return KeptSet(threshold, cut)


class _Search:
    """A bracket per row: low <= key of the K-th largest logit < high, with the counts that say so.

    low, high: int64 [N] keys. count_low, count_high: int64 [N], logits >= low (at least K of them)
    and >= high (fewer than K). All of it is the same on every rank; a row is settled when
    count_low is K, or when low and high are neighbours.
    """

    def __init__(self, logits: Tensor, k: int, shard: VocabShard) -> None:
        self.logits, self.k, self.shard = logits, k, shard
        rows = logits.shape[0]
        infinity = torch.tensor(float("inf"), dtype=logits.dtype, device=logits.device)
        self.low = _key_of(-infinity).repeat(rows)
        self.high = _key_of(infinity).repeat(rows) + 1
        self.count_low = torch.full_like(self.low, shard.vocab_size)
        self.count_high = torch.zeros_like(self.low)

    def run(self) -> None:
        rows = self._open(torch.arange(self.low.numel(), device=self.low.device))
        if not rows.numel():
            return
        below, above = self._sampled_bracket()
        candidates, beyond = self._take_bracket(below, above)
        hit = (self.low[rows] == below[rows]) & (self.high[rows] == above[rows])
        self._narrow(self._open(rows[hit]), candidates, beyond)
        self._narrow(self._open(rows[~hit]), self.logits, torch.zeros_like(beyond))

    def _open(self, rows: Tensor) -> Tensor:
        """Return those of ``rows`` that are not settled yet."""
        low, high = self.low[rows], self.high[rows]
        return rows[(self.count_low[rows] != self.k) & (high > low + 1)]

    def _sampled_bracket(self) -> tuple[Tensor, Tensor]:
        """Propose a bracket for every row, from a sample of each shard.

        If the wanted quantile of each shard lies between two values, so does that of the whole:
        hence the extremes over the shards.
        """
        width, share = self.shard.width, self.k / self.shard.vocab_size
        below, above = self.high.clone(), self.low.clone()  # neutral: a narrow block proposes this
        if width >= SMALLEST_SAMPLE:
            # Rounding the step up spreads the sample over all the block.
            sample = self.logits[:, :: -(-width // SAMPLE_SIZE)].contiguous()
            size = sample.shape[1]
            margin = 3.5 * (size * share * (1 - share)) ** 0.5 + 2
            first, last = int(size * share - margin), int(size * share + margin)  # from the top
            below = self.low.clone() if last >= size else _key_of(_nth_largest(sample, last))
            above = self.high.clone() if first < 0 else _key_of(_nth_largest(sample, first)) + 1
        ends = self.shard.all_reduce(torch.stack([-below, above]), dist.ReduceOp.MAX)
        below, above = -ends[0], ends[1]
        proposed = below < above
        return torch.where(proposed, below, self.low), torch.where(proposed, above, self.high)

    def _take_bracket(self, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """Narrow all rows to [below, above), or to what lies beyond it where that proves wrong.

        Returns (candidates, beyond): this shard's logits inside, [N, C] filled up with -inf, and
        the number above each row's, int64 [N]; the logits themselves and zeros where C is large.
        """
        dtype = self.logits.dtype
        low_value, high_value = _value_of(below, dtype)[:, None], _value_of(above, dtype)[:, None]
        inside, beyond, values = torch.zeros_like(below), torch.zeros_like(below), []
        for part in row_slices(*self.logits.shape):
            x = self.logits[part]
            # A key above that of +inf stands for NaN: no logit is beyond it, as it should be.
            is_beyond = x >= high_value[part]
            row, column = ((x >= low_value[part]) ^ is_beyond).nonzero(as_tuple=True)
            values.append(x[row, column])
            beyond[part] = is_beyond.sum(dim=1)
            inside[part] = torch.bincount(row, minlength=x.shape[0])

        count_above, count_below = self.shard.all_reduce(torch.stack([beyond, beyond + inside]))
        self._take_pivots(slice(None), below, count_below)
        self._take_pivots(slice(None), above, count_above)

        longest = int(inside.max())
        if longest * 4 > self.logits.shape[1]:
            return self.logits, torch.zeros_like(beyond)
        candidates = self.logits.new_full((below.numel(), longest), -float("inf"))
        filled = torch.arange(longest, device=below.device) < inside[:, None]
        candidates[filled] = torch.cat(values)
        return candidates, beyond

    def _narrow(self, rows: Tensor, values: Tensor, beyond: Tensor) -> None:
        """Settle ``rows`` by looking at ``values`` [N, C] alone, this shard's logits in question.

        beyond: int64 [N], the shard's logits above those of each row, left out of ``values``.
        """
        turn = 0
        while rows.numel():
            # Without ties and gaps nearly all rows are settled by interpolation alone.
            if turn >= PATIENCE and turn % 2 == 0:
                self._move_ends_to_logits(rows, values)
                rows = self._open(rows)
            pivots = self._pivots(rows, bisect=turn >= PATIENCE and turn % 2 == 1)
            counts = beyond[rows] + _count_at_least(values, rows, pivots)
            self._take_pivots(rows, pivots, self.shard.all_reduce(counts))
            rows = self._open(rows)
            turn += 1

    def _take_pivots(self, rows: Tensor | slice, pivots: Tensor, counts: Tensor) -> None:
        """Let each pivot inside its row's bracket become one of the ends, as its count tells."""
        low, high = self.low[rows], self.high[rows]
        inside = (pivots > low) & (pivots < high)
        raises_low, lowers_high = inside & (counts >= self.k), inside & (counts < self.k)
        self.low[rows] = torch.where(raises_low, pivots, low)
        self.high[rows] = torch.where(lowers_high, pivots, high)
        self.count_low[rows] = torch.where(raises_low, counts, self.count_low[rows])
        self.count_high[rows] = torch.where(lowers_high, counts, self.count_high[rows])

    def _pivots(self, rows: Tensor, bisect: bool) -> Tensor:
        """Return a key strictly inside the bracket of each of ``rows``."""
        low, high = self.low[rows], self.high[rows]
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # low + high may overflow
        # 16-bit logits have few distinct values in a bracket, many times each: halving is quicker.
        if bisect or self.logits.dtype.itemsize == 2:
            return middle
        dtype = self.logits.dtype
        from_value = _value_of(low, dtype).double()
        to_value = _value_of(high - 1, dtype).double()
        count_low, count_high = self.count_low[rows].double(), self.count_high[rows].double()
        share = (count_low - self.k + 0.5) / (count_low - count_high + 1)
        guess = from_value + (to_value - from_value) * share
        key = torch.minimum(torch.maximum(_key_of(guess.to(dtype)), low + 1), high - 1)
        return torch.where(guess.isfinite(), key, middle)

    def _move_ends_to_logits(self, rows: Tensor, values: Tensor) -> None:
        """Raise low to the smallest logit at or above it, lower high to just above the largest."""
        dtype, infinity = self.logits.dtype, float("inf")
        low_value = _value_of(self.low[rows], dtype)
        last_value = _value_of(self.high[rows] - 1, dtype)
        ends = torch.stack([-self.high[rows], self.low[rows] - 1])
        for part, x in _gathered(values, rows):
            if x.shape[1]:
                smallest = x.masked_fill(x < low_value[part, None], infinity).amin(dim=1)
                largest = x.masked_fill(x > last_value[part, None], -infinity).amax(dim=1)
                ends[0, part], ends[1, part] = -_key_of(smallest), _key_of(largest)
        self.shard.all_reduce(ends, dist.ReduceOp.MAX)
        self.low[rows] = torch.maximum(self.low[rows], -ends[0])
        self.high[rows] = torch.minimum(self.high[rows], ends[1] + 1)


def _count_at_least(values: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """Count the values of row rows[i] whose key is keys[i] or more: int64 [len(rows)]."""
    bounds = _value_of(keys, values.dtype)
    counts = torch.empty_like(keys)
    for part, x in _gathered(values, rows):
        # Adding up ones in floating point is several times faster than counting a mask, and exact
        # below 2^24 columns a shard.
        ones = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        counts[part] = torch.ge(x, bounds[part, None], out=ones).sum(dim=1).long()
    return counts


def _nth_largest(values: Tensor, n: int) -> Tensor:
    """Return the n-th largest (from 0) of each row of ``values`` [N, C]: [N]."""
    return values.kthvalue(values.shape[1] - n, dim=1).values


def _tie_cut(
    logits: Tensor, rows: Tensor, threshold: Tensor, wanted: Tensor, shard: VocabShard
) -> Tensor:
    """Return the global id of the wanted[i]-th (from 1) logit of rows[i] that equals threshold[i].

    All of int64 [len(rows)]. Ties are numbered by rank and then by column, which is by global id.
    """
    ranks = 1 if shard.group is None else dist.get_world_size(shard.group)
    rank = 0 if shard.group is None else dist.get_rank(shard.group)
    ties = torch.zeros(ranks, rows.numel(), dtype=torch.int64, device=rows.device)
    columns = []
    for part, x in _gathered(logits, rows):
        row, column = (x == threshold[part, None]).nonzero(as_tuple=True)
        ties[rank, part] = torch.bincount(row, minlength=x.shape[0])
        columns.append(column)
    shard.all_reduce(ties)
    wanted_here = wanted - ties[:rank].sum(dim=0)
    owned = (wanted_here > 0) & (wanted_here <= ties[rank])
    first = ties[rank].cumsum(dim=0) - ties[rank]  # where a row's columns begin among all
    cut = torch.full_like(wanted, -1)
    cut[owned] = shard.start + torch.cat(columns)[(first + wanted_here - 1)[owned]]
    return shard.all_reduce(cut, dist.ReduceOp.MAX)


def _gathered(logits: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of ``rows`` with the logits of the rows they name, without a copy if all are."""
    everything = rows.numel() == logits.shape[0]
    for part in row_slices(rows.numel(), logits.shape[1]):
        yield part, logits[part] if everything else logits.index_select(0, rows[part])


def _key_of(values: Tensor) -> Tensor:
    """Map floating-point numbers to int64 keys of the same order; -0.0 gets the key of 0.0."""
    integer = _KEY_DTYPE[values.dtype]
    bits = (values + 0.0).view(integer)
    return torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits).long()


def _value_of(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo _key_of: int64 keys to numbers of ``dtype``."""
    integer = _KEY_DTYPE[dtype]
    bits = keys.to(integer)
    return torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits).view(dtype)
