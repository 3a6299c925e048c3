"""Token statistics over the ranks that share a vocabulary: four rounds, whatever V and K are.

1. A sample of each shard proposes an interval that holds the K-th largest logit; the widest over
   the ranks is taken: 16 bytes a token, all-reduced.
2. Each shard is read once: its sums, how many logits lie above the interval, and the candidates
   inside. The candidates are counted in BUCKETS equal parts of the interval: 4 * (BUCKETS + 1)
   bytes a token, all-reduced, which tell the part in which the K-th lies, or that the interval
   misses it.
3. The same within that part: 4 * BUCKETS bytes. What is left of some thousand candidates is one or
   two, or ties.
4. Every rank gathers every rank's sums and up to SLOTS of the logits left, 4 * (9 + SLOTS) bytes
   a token and rank, and finishes alone, in the same order as all others.

The sums of squares, if requested, are sent with the others: 12 bytes a token and rank.

Together 404 + 68 t bytes a token for t ranks (more for float64), under 1 KB up to t = 8. The bucket
of a logit grows with it whatever the rounding, so the selection is exact. Rows whose interval
missed, whose buffers were too small, or in which more than SLOTS different logits of a shard are
left (heavily clumped ones) are searched by selection.search, with rounds of their own. Rows are
taken in blocks, so that the candidates stay below some 64 MB. Which rows are left for the search is
the one thing for which the host waits, once for all blocks; the chunked head waits once for all its
chunks. To search without that wait, every row would need as many rounds as the slowest possible
one: docs/performance.md has the cost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy import selection
from aent.entropy.kernels.interface import NO_CUT, Backend, Scan, Sums
from aent.entropy.kernels.torch_path import inner_dtype, weigh
from aent.entropy.shard import VocabShard

BUCKETS = 48
SLOTS = 8
CANDIDATE_BYTES = 1 << 26
SUM_BLOCK = 256


class _Part(NamedTuple):
    """One bucket per row: which, how many logits lie in higher ones, whether the K-th is in it."""

    bucket: Tensor
    above: Tensor
    hit: Tensor


class Rows(NamedTuple):
    """What is known of N rows over all shards."""

    target: Tensor  # inner: the target's logit
    sums: Sums
    threshold: Tensor | None  # None if nothing is clamped
    cut: Tensor | None  # this rank's own; the rest is the same on every rank


def forward(
    backend: Backend,
    x: Tensor,
    target: Tensor,
    k: int,
    temperature: float,
    shard: VocabShard,
    squares: bool = False,
    unsettled: list[Tensor] | None = None,
) -> Rows:
    """Combine the shards' statistics; collective over ``shard.group``.

    Args:
        x: [N, shard.width].
        target: inner [N], the target's logit on the rank that has it, 0 on the others.
        k: in [1, shard.vocab_size]; the latter clamps nothing and takes the last round alone.
        squares: whether ``Sums.squares`` are wanted.
        unsettled: None: rows that are left are searched by counting. A list: they are not searched,
            the host waits for nothing, and bool [N] is appended: True if a row's result is wrong.
    """
    if k == shard.vocab_size:
        sums = backend.scan(x, temperature, None, None, 0, squares).sums
        shares = _gather(torch.stack([target, *sums.columns], dim=1), shard)
        return Rows(_over_ranks(shares[..., 0]), _combine(shares[..., 1:], temperature), None, None)
    capacity = 1024 + shard.vocab_size // shard.ranks // 4  # all of a block without a sample
    step = max(1, CANDIDATE_BYTES // (8 * capacity))
    parts = []
    for first in range(0, max(1, x.shape[0]), step):
        rows = slice(first, first + step)
        settings = (k, temperature, shard, capacity, squares)
        parts.append(_block(backend, x[rows], target[rows], *settings))
    target, *found, done = (torch.cat(columns) for columns in zip(*parts))
    if unsettled is not None:
        unsettled.append(~done)
    elif (rest := (~done).nonzero().squeeze(1)).numel():
        for some in rest.split(step):
            part = x.index_select(0, some)
            for into, value in zip(
                found, _counted_out(backend, part, k, temperature, shard, squares)
            ):
                into[some] = value
    *all_sums, threshold, cut = found
    return Rows(target, Sums.of(all_sums), threshold, cut)


def _block(
    backend: Backend,
    x: Tensor,
    target: Tensor,
    k: int,
    temperature: float,
    shard: VocabShard,
    capacity: int,
    squares: bool,
) -> tuple[Tensor, ...]:
    """Target, sums, threshold and cut of some rows, and in which of them these are exact."""
    ends = shard.all_reduce(backend.propose(x, k / shard.vocab_size), dist.ReduceOp.MAX)
    high, low = ends[0], -ends[1]
    proposed = high >= low
    low, high = torch.where(proposed, low, -torch.inf), torch.where(proposed, high, torch.inf)
    scan = _trimmed(backend.scan(x, temperature, low, high, capacity, squares))

    fine = _buckets(scan, low, high, ends)
    counts = torch.cat([scan.above[:, None], _count(fine // BUCKETS)], dim=1)
    shard.all_reduce(counts)
    coarse = _choose(counts[:, 0], counts[:, 1:], k)
    counts = _count(torch.where(fine // BUCKETS == coarse.bucket[:, None], fine % BUCKETS, -1))
    part = _choose(coarse.above, shard.all_reduce(counts), k)

    bucket = (coarse.bucket * BUCKETS + part.bucket)[:, None]
    sums = _with_kept(scan.sums, scan.values, fine > bucket, temperature)
    mine = torch.stack([target, *sums.columns], dim=1)
    first = mine.shape[1]  # of what describes the candidates left
    left = _left(scan, fine == bucket, scan.inside > capacity)
    shares = _gather(torch.cat([mine, left], dim=1), shard)

    wanted = k - part.above
    threshold, ties, higher, exact = _settle(shares[..., first:], wanted)
    tied = wanted - higher.sum(dim=1)  # how many ties are kept
    values = torch.cat([shares[..., first + 3 :].flatten(1), threshold[:, None]], dim=1)
    times = torch.cat([higher, tied[:, None]], dim=1)
    sums = _with_kept(_combine(shares[..., 1:first], temperature), values, times, temperature)
    here = tied - ties[:, : shard.rank].sum(dim=1)
    cut = _cut(scan, threshold, here, ties[:, shard.rank], shard.start)

    done = (coarse.hit & part.hit & exact) | sums.total.isnan()
    return _over_ranks(shares[..., 0]), *sums.columns, threshold, cut, done


def _trimmed(scan: Scan) -> Scan:
    """Put -inf, which weighs nothing, where there are no candidates; drop columns no row uses.

    The latter only on a CPU, where asking how many is free.
    """
    used = scan.values.shape[1]
    if scan.values.device.type == "cpu" and scan.inside.numel():
        used = min(used, max(1, int(scan.inside.max())))
    values = scan.values[:, :used]
    return scan._replace(
        values=values.masked_fill(~_valid(scan, used), -torch.inf), columns=scan.columns[:, :used]
    )


def _valid(scan: Scan, used: int) -> Tensor:
    return torch.arange(used, device=scan.inside.device) < scan.inside[:, None]


def _buckets(scan: Scan, low: Tensor, high: Tensor, ends: Tensor) -> Tensor:
    """Return the bucket of each candidate, 0 to BUCKETS^2 - 1, growing with its value; else -1.

    An open interval counts as ending where the sample does.
    """
    low, high = torch.maximum(low, -ends[3]), torch.minimum(high, ends[2])
    scale = BUCKETS * BUCKETS / (high - low)
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 0)[:, None]
    # nan_to_num: 0 * inf if the scale is 0, which is one bucket for all
    place = (scan.values - low[:, None]).mul_(scale).nan_to_num_(0)
    place = place.clamp_(0, BUCKETS * BUCKETS - 1).int()
    return torch.where(_valid(scan, place.shape[1]), place, -BUCKETS)


def _count(buckets: Tensor) -> Tensor:
    """Count the entries in each of BUCKETS buckets, those in bucket -1 not: int32 [N, BUCKETS]."""
    counts = torch.zeros(buckets.shape[0], BUCKETS + 1, device=buckets.device)
    ones = torch.ones((), device=buckets.device).expand(buckets.shape)
    return counts.scatter_add_(1, buckets.long() + 1, ones)[:, 1:].int()


def _choose(above: Tensor, counts: Tensor, k: int) -> _Part:
    """Find the bucket in which the K-th largest lies, given how many lie above all buckets."""
    counts = counts.flip(1)
    reached = counts.cumsum(dim=1) + above[:, None]  # from the top down
    turned = (reached < k).sum(dim=1, keepdim=True)
    hit = (above < k) & (turned[:, 0] < BUCKETS)
    turned = turned.clamp_(max=BUCKETS - 1)
    before = (reached.gather(1, turned) - counts.gather(1, turned))[:, 0]
    return _Part(BUCKETS - 1 - turned[:, 0], before, hit)


def _left(scan: Scan, left: Tensor, overflow: Tensor) -> Tensor:
    """Describe the candidates left in a shard, [N, 3 + SLOTS]: number, largest, smallest, some.

    A row whose buffer overflowed has the largest at inf and the smallest at -inf.
    """
    rows, infinity = len(overflow), torch.inf
    values, number = scan.values, left.sum(dim=1).to(scan.values.dtype)
    most = values.masked_fill(~left, -infinity).amax(dim=1).masked_fill_(overflow, infinity)
    least = values.masked_fill(~left, infinity).amin(dim=1).masked_fill_(overflow, -infinity)
    place = torch.where(left, left.cumsum(dim=1) - 1, SLOTS).clamp_(max=SLOTS)
    slots = values.new_full((rows, SLOTS + 1), -infinity).scatter_(1, place, values)
    return torch.cat([torch.stack([number, most, least], dim=1), slots[:, :SLOTS]], dim=1)


def _settle(left: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the wanted-th largest of what is left on all ranks, [N, t, 3 + SLOTS].

    Returns the threshold [N], the ties of each rank [N, t], which slots [N, t * SLOTS] lie above
    it, and whether all of this is exact.
    """
    number, most, least = left[..., 0].long(), left[..., 1].amax(dim=1), left[..., 2].amin(dim=1)
    slots = left[..., 3:]
    filled = torch.arange(SLOTS, device=left.device) < number[..., None]
    ordered = slots.masked_fill(~filled, -torch.inf).flatten(1).sort(dim=1, descending=True).values
    threshold = ordered.gather(1, (wanted[:, None] - 1).clamp(0, ordered.shape[1] - 1))[:, 0]
    ties = ((slots == threshold[:, None, None]) & filled).sum(dim=2)

    one_value = most == least  # however many there are
    threshold = torch.where(one_value, most, threshold)
    ties = torch.where(one_value[:, None], number, ties)
    higher = (slots > threshold[:, None, None]) & filled & ~one_value[:, None, None]
    exact = one_value | (
        (number <= SLOTS).all(dim=1) & ~((most == torch.inf) & (least == -torch.inf))
    )
    return threshold, ties, higher.flatten(1), exact


def _cut(scan: Scan, threshold: Tensor, wanted: Tensor, ties: Tensor, start: int) -> Tensor:
    """Find the id of the last kept tie among this shard's candidates, if some but not all stay."""
    tied = (scan.values == threshold[:, None]) & _valid(scan, scan.values.shape[1])
    place = tied.cumsum(dim=1)
    at = (place < wanted[:, None]).sum(dim=1, keepdim=True).clamp_(max=place.shape[1] - 1)
    cut = scan.columns.gather(1, at)[:, 0]
    return torch.where(wanted <= 0, -1, torch.where(wanted >= ties, NO_CUT, cut + start))


def _counted_out(
    backend: Backend, x: Tensor, k: int, temperature: float, shard: VocabShard, squares: bool
) -> tuple[Tensor, ...]:
    """Sums, threshold and cut of some rows by ``selection.search`` and another pass."""
    inner = x.to(inner_dtype(x))
    threshold, cut = selection.search(inner, x.dtype, k, shard)
    sums = backend.scan(x, temperature, threshold, threshold, 0, squares).sums
    ids = torch.arange(shard.start, shard.start + x.shape[1], device=x.device)
    tied = ((inner == threshold[:, None]) & (ids <= cut[:, None])).sum(dim=1, keepdim=True)
    sums = _with_kept(sums, threshold[:, None], tied, temperature)
    shares = _gather(torch.stack(sums.columns, dim=1), shard)
    return *_combine(shares, temperature).columns, threshold, cut


def _with_kept(sums: Sums, values: Tensor, times: Tensor, temperature: float) -> Sums:
    """Add values [N, C], each so many ``times``, to the kept sums."""
    d, e = weigh(values, temperature, sums.peak)
    e.mul_(times)
    return sums._replace(
        kept_total=sums.kept_total + _ordered_sum(e),
        kept_weighted=sums.kept_weighted + _ordered_sum(d.mul_(e)),
    )


def _ordered_sum(x: Tensor) -> Tensor:
    """Sum each row of [N, C] in an order that zeros at its end do not change."""
    blocks = torch.nn.functional.pad(x, (0, -x.shape[1] % SUM_BLOCK)).unflatten(1, (-1, SUM_BLOCK))
    return blocks.sum(dim=2).cumsum(dim=1)[:, -1]


def _gather(mine: Tensor, shard: VocabShard) -> Tensor:
    """Return every rank's [N, C] as [N, t, C]."""
    shares = mine.new_empty(shard.ranks, *mine.shape)
    dist.all_gather(list(shares), mine.contiguous(), group=shard.group)
    return shares.transpose(0, 1)


def _combine(shares: Tensor, temperature: float) -> Sums:
    """Add up the Sums of all shards, [N, t, columns], each relative to its own peak."""
    sums = Sums.of(shares.unbind(2))
    _, total, weighted, kept_total, kept_weighted, squares = sums
    peak = sums.peak.amax(dim=1)
    d, e = weigh(sums.peak, temperature, peak)
    weighted, kept_weighted = weighted + total * d, kept_weighted + kept_total * d
    once = [_over_ranks(s * e) for s in (total, weighted, kept_total, kept_weighted)]
    if squares:
        square, by_d, by_dd = squares
        squares = (square, by_d + square * d, by_dd + 2 * d * by_d + square * d.square())
    return Sums.of([peak, *once, *(_over_ranks(s * e.square()) for s in squares)])


def _over_ranks(x: Tensor) -> Tensor:
    """Sum [N, t] over the ranks, one after the other."""
    return x.cumsum(dim=1)[:, -1]
