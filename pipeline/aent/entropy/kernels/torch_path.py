"""The backend made of torch operations: any device, any dtype, no compiler.

It works through a few rows at a time, in buffers that stay in cache. exp alone costs as much as ten
other operations here, and softmax, which contains it, half of that: so e comes out of softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aent.entropy import selection
from aent.entropy.kernels import Gradient, Scan, Sums
from aent.entropy.selection import VocabShard, row_slices

# exp underflows to 0 long before this in every dtype, and 0 * LOWEST is 0: a masked logit (-inf)
# then takes part in no sum (0 log 0 = 0) and has no gradient.
LOWEST = -1000.0


def forward(x: Tensor, k: int, temperature: float) -> tuple[Sums, Tensor, Tensor]:
    alone = VocabShard(0, x.shape[1], x.shape[1], None)
    parts = []
    buffers = _Buffers(x, 4)
    for rows in row_slices(*x.shape):
        chunk, d, e, mask = buffers.of(rows)
        chunk = chunk.copy_(x[rows]) if x.dtype != chunk.dtype else x[rows]
        threshold, cut = selection.search(chunk, x.dtype, k, alone, mask)
        kept_mask(chunk, threshold, cut, 0, mask)
        parts.append((*_sums(chunk, temperature, mask, d, e), threshold, cut))
    *sums, threshold, cut = _joined(parts, x)
    return Sums(*sums), threshold, cut


def propose(x: Tensor, share: float) -> Tensor:
    inner = inner_dtype(x)
    parts = [selection.propose(x[rows].to(inner), share) for rows in row_slices(*x.shape)]
    return torch.cat([x.new_empty(4, 0, dtype=inner), *parts], dim=1)


def scan(
    x: Tensor, temperature: float, low: Tensor | None, high: Tensor | None, capacity: int
) -> Scan:
    """See kernels/__init__.py; on a GPU, picking the candidates synchronises."""
    parts = []
    counts = torch.zeros(2, x.shape[0], dtype=torch.int32, device=x.device)
    values = x.new_empty(x.shape[0], capacity, dtype=inner_dtype(x))
    columns = torch.empty(x.shape[0], capacity, dtype=torch.int32, device=x.device)
    buffers = _Buffers(x, 4)
    for rows in row_slices(*x.shape):
        chunk, d, e, mask = buffers.of(rows)
        chunk = chunk.copy_(x[rows]) if x.dtype != chunk.dtype else x[rows]
        above = None
        if low is not None and high is not None:
            above = torch.gt(chunk, high[rows, None], out=mask)
            counts[0, rows] = above.sum(dim=1).int()
            inside = (chunk >= low[rows, None]) & (chunk <= high[rows, None])
            counts[1, rows] = inside.sum(dim=1).int()
            inside &= (counts[1, rows] <= capacity)[:, None]
            row, column = inside.nonzero(as_tuple=True)
            first = inside.sum(dim=1).cumsum(dim=0) - inside.sum(dim=1)
            place = torch.arange(len(row), device=x.device) - first[row]
            values[rows][row, place] = chunk[row, column]
            columns[rows][row, place] = column.int()
        parts.append(_sums(chunk, temperature, above, d, e))
    return Scan(Sums(*_joined(parts, x)), counts[0], counts[1], values, columns)


def backward(x: Tensor, out: Tensor, rows: Gradient, temperature: float, start: int) -> None:
    buffers = _Buffers(x, 4)
    for part in row_slices(*x.shape):
        peak, a, b, kept_a, kept_b, threshold, cut, column, g_target = (
            None if t is None else t[part] for t in rows
        )
        assert peak is not None
        assert a is not None
        assert b is not None
        chunk, d, e, mask = buffers.of(part)
        chunk = chunk.copy_(x[part]) if x.dtype != chunk.dtype else x[part]
        if not x.shape[1]:
            continue
        _weigh_into(chunk, temperature, peak, d, e)
        term = None
        if kept_a is not None and kept_b is not None and threshold is not None and cut is not None:
            kept_mask(chunk, threshold, cut, start, mask)
            # x is read no more, so its copy may go: a buffer less in the cache
            term = torch.mul(d, kept_b[:, None], out=buffers.of(part)[0])
            term.add_(kept_a[:, None]).mul_(mask)
        d.mul_(b[:, None]).add_(a[:, None])
        e.mul_(d if term is None else d.add_(term))
        if column is not None and g_target is not None:
            here = torch.where(column >= 0, g_target, 0)
            e.scatter_add_(1, column.clamp(min=0)[:, None], here[:, None])
        out[part] = e


def kept_mask(
    x: Tensor, threshold: Tensor, cut: Tensor, start: int, out: Tensor | None = None
) -> Tensor:
    """Return 1 for the kept columns of x [n, width] and 0 for the others, in x's dtype.

    Comparing straight into numbers to multiply by is quicker than by bools.
    """
    mask = torch.ge(x, threshold[:, None], out=torch.empty_like(x) if out is None else out)
    cutting = cut < start + x.shape[1] - 1
    if x.device.type != "cpu" or bool(cutting.any()):
        ids = torch.arange(start, start + x.shape[1], device=x.device, dtype=torch.int32)
        beyond = torch.gt(ids, cut[:, None], out=torch.empty_like(x))
        mask.sub_(torch.eq(x, threshold[:, None], out=torch.empty_like(x)).mul_(beyond))
    return mask


class _Buffers:
    """Room for a slice of rows, a few times over, used again for the next: fresh pages cost more
    than the arithmetic."""

    def __init__(self, x: Tensor, number: int) -> None:
        most = next((rows.stop for rows in row_slices(*x.shape)), 0)
        self.rooms = x.new_empty(number, most, x.shape[1], dtype=inner_dtype(x))

    def of(self, rows: slice) -> Tensor:
        return self.rooms[:, : rows.stop - rows.start]


def inner_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sums(
    x: Tensor, temperature: float, mask: Tensor | None, d: Tensor, e: Tensor
) -> tuple[Tensor, ...]:
    """Return the Sums of a chunk [n, width]; without a mask the kept ones are 0."""
    if not x.shape[1]:
        nothing = x.new_zeros(x.shape[0])
        return nothing - math.inf, nothing, nothing, nothing, nothing
    peak = x.amax(dim=1)
    _weigh_into(x, temperature, peak, d, e)
    total = _row_sums(e)
    weighted = _row_sums(d.mul_(e))
    if mask is None:
        return peak, total, weighted, torch.zeros_like(peak), torch.zeros_like(peak)
    return peak, total, weighted, _row_sums(e.mul_(mask)), _row_sums(d.mul_(mask))


def _weigh_into(x: Tensor, temperature: float, peak: Tensor, d: Tensor, e: Tensor) -> None:
    """Write d = (x - peak) / T, in [LOWEST, 0], and e = exp(d), as ``weigh`` does; [n, width]."""
    torch.sub(x, peak.clamp(min=torch.finfo(x.dtype).min)[:, None], out=d)
    if temperature != 1:
        d.div_(temperature)
    d.clamp_(LOWEST, 0)
    torch.softmax(d, dim=1, out=e)
    e.div_((e.amax(dim=1) / d.amax(dim=1).exp())[:, None])  # which makes the peak's weight 1


def weigh(x: Tensor, temperature: float, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Return d = (x - peak) / T, in [LOWEST, 0], and e = exp(d), both fresh; x [n, C], peak [n].

    A row without a finite logit (peak is -inf) weighs nothing. At most 0: a number that is not of
    the row then meets no infinity.
    """
    d = torch.sub(x, peak.clamp(min=torch.finfo(x.dtype).min)[:, None])
    if temperature != 1:
        d.div_(temperature)
    d.clamp_(LOWEST, 0)
    return d, d.exp()


def _row_sums(x: Tensor) -> Tensor:
    """Sum each row in an order that does not depend on how many rows there are.

    torch splits a lone row over its threads, and only a lone one: give it company.
    """
    if x.shape[0] == 1:
        return torch.cat([x, x]).sum(dim=1)[:1]
    return x.sum(dim=1)


def _joined(parts: list[tuple[Tensor, ...]], x: Tensor) -> list[Tensor]:
    if not parts:
        nothing = x.new_empty(0, dtype=inner_dtype(x))
        return [*[nothing] * 6, nothing.int()]
    return [torch.cat(columns) for columns in zip(*parts)]
