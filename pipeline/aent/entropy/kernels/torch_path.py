"""The backend made of torch operations: any device, any dtype, no compiler.

It processes a few rows at a time, in buffers that stay in the cache. Here exp alone costs as much
as ten other operations, but softmax, which contains it, only half of that. So e comes from softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aent.entropy import selection
from aent.entropy.kernels import torch_select
from aent.entropy.kernels.interface import Gradient, Scan, Sums
from aent.entropy.selection import row_slices

# exp underflows to 0 long before this in every dtype, and 0 * LOWEST is 0: a masked logit (-inf)
# then takes part in no sum (0 log 0 = 0) and has no gradient.
LOWEST = -1000.0


def forward(
    x: Tensor, k: int, temperature: float, squares: bool = False
) -> tuple[Sums, Tensor, Tensor]:
    parts = []
    buffers = _Buffers(x, 4 + squares)
    for rows in row_slices(*x.shape):
        chunk, d, e, mask, *spare = buffers.of(rows)
        chunk = chunk.copy_(x[rows]) if x.dtype != chunk.dtype else x[rows]
        threshold, cut = torch_select.select(chunk, x.dtype, k, mask)
        kept_mask(chunk, threshold, cut, 0, mask)
        parts.append((*_sums(chunk, temperature, mask, d, e, *spare), threshold, cut))
    *sums, threshold, cut = _joined(parts, x, squares)
    return Sums.of(sums), threshold, cut


def propose(x: Tensor, share: float) -> Tensor:
    inner = inner_dtype(x)
    parts = [selection.propose(x[rows].to(inner), share) for rows in row_slices(*x.shape)]
    return torch.cat([x.new_empty(4, 0, dtype=inner), *parts], dim=1)


def scan(
    x: Tensor,
    temperature: float,
    low: Tensor | None,
    high: Tensor | None,
    capacity: int,
    squares: bool = False,
) -> Scan:
    """See kernels/__init__.py; on a GPU, selecting the candidates synchronizes."""
    parts = []
    counts = torch.zeros(2, x.shape[0], dtype=torch.int32, device=x.device)
    values = x.new_empty(x.shape[0], capacity, dtype=inner_dtype(x))
    columns = torch.empty(x.shape[0], capacity, dtype=torch.int32, device=x.device)
    buffers = _Buffers(x, 4 + squares)
    for rows in row_slices(*x.shape):
        chunk, d, e, mask, *spare = buffers.of(rows)
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
        parts.append(_sums(chunk, temperature, above, d, e, *spare))
    sums = _joined(parts, x, squares)[: 8 if squares else 5]
    return Scan(Sums.of(sums), counts[0], counts[1], values, columns)


def backward(x: Tensor, out: Tensor, rows: Gradient, temperature: float, start: int) -> None:
    buffers = _Buffers(x, 4)
    for part in row_slices(*x.shape):
        if not x.shape[1]:
            continue
        peak, a, b, kept_a, kept_b, threshold, cut, column, g_target = (
            None if t is None else t[part] for t in rows
        )
        assert peak is not None
        assert a is not None
        chunk, d, e, mask = buffers.of(part)
        chunk = chunk.copy_(x[part]) if x.dtype != chunk.dtype else x[part]
        _weigh_into(chunk, temperature, peak, d, e)
        scale = d.amax(dim=1).exp() / e.amax(dim=1)  # by which e is too small
        if kept_a is not None and kept_b is not None and threshold is not None and cut is not None:
            kept_mask(chunk, threshold, cut, start, mask)
            # kept ones get a + kept_a + (b + kept_b) d. x is not read again, so its copy may be
            # freed
            term = buffers.of(part)[0] if b is not None else d
            torch.mul(d, (scale * kept_b)[:, None], out=term)
            term.add_((scale * kept_a)[:, None]).mul_(mask)
            factor = term.add_((scale * a)[:, None])
            if b is not None:
                factor = factor.add_(d.mul_((scale * b)[:, None]))
        elif b is not None:
            factor = d.mul_((scale * b)[:, None]).add_((scale * a)[:, None])
        else:
            factor = (scale * a)[:, None]
        grad = torch.mul(e, factor, out=out[part] if out.dtype == e.dtype else e)
        if column is not None and g_target is not None:
            here = torch.where(column >= 0, g_target, 0)
            grad.scatter_add_(1, column.clamp(min=0)[:, None], here[:, None])
        if grad is e:
            out[part] = e


def kept_mask(
    x: Tensor, threshold: Tensor, cut: Tensor, start: int, out: Tensor | None = None
) -> Tensor:
    """Return 1 for the kept columns of x [n, width] and 0 for the others, in x's dtype.

    Comparing directly into floating-point numbers is faster than with bools.
    """
    mask = torch.ge(x, threshold[:, None], out=torch.empty_like(x) if out is None else out)
    last = cut - start
    if x.device.type == "cpu":
        for row in (last < x.shape[1] - 1).nonzero().squeeze(1).tolist():
            rest = slice(max(0, int(last[row]) + 1), None)
            torch.gt(x[row, rest], threshold[row], out=mask[row, rest])
    else:
        beyond = torch.arange(x.shape[1], device=x.device) > last[:, None]
        mask.mul_(~(beyond & (x == threshold[:, None])))
    return mask


class _Buffers:
    """Buffers for a slice of rows, reused for the next slice: fresh pages cost more than the
    arithmetic."""

    def __init__(self, x: Tensor, number: int) -> None:
        most = next((rows.stop for rows in row_slices(*x.shape)), 0)
        inner = inner_dtype(x)
        self.rooms = [x.new_empty(most, x.shape[1], dtype=inner) for _ in range(number)]

    def of(self, rows: slice) -> list[Tensor]:
        return [room[: rows.stop - rows.start] for room in self.rooms]


def inner_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sums(
    x: Tensor,
    temperature: float,
    mask: Tensor | None,
    d: Tensor,
    e: Tensor,
    spare: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the Sums of a chunk [n, width]; without a mask the kept ones are 0. The squares with a
    ``spare`` buffer."""
    if not x.shape[1]:
        nothing = x.new_zeros(x.shape[0])
        return nothing - math.inf, *[nothing] * (4 if spare is None else 7)
    peak = x.amax(dim=1)
    _weigh_into(x, temperature, peak, d, e)
    unit = e.amax(dim=1)  # the peak's, which weighs exactly 1; all of e adds up to 1
    total, weighted = 1 / unit, _row_sums(d.mul_(e)) / unit
    squares = []
    if spare is not None:
        products = ((e, e), (e, d), (d, d))
        squares = [_row_sums(torch.mul(*p, out=spare)) / unit / unit for p in products]
    if mask is None:
        return peak, total, weighted, torch.zeros_like(peak), torch.zeros_like(peak), *squares
    kept_total, kept_weighted = _row_sums(e.mul_(mask)), _row_sums(d.mul_(mask))
    return peak, total, weighted, kept_total / unit, kept_weighted / unit, *squares


def _weigh_into(x: Tensor, temperature: float, peak: Tensor, d: Tensor, e: Tensor) -> None:
    """Write d = (x - peak) / T, in [LOWEST, 0], and e = exp(d) up to a factor; [n, width]."""
    torch.sub(x, peak.clamp(min=torch.finfo(x.dtype).min)[:, None], out=d)
    if temperature != 1:
        d.div_(temperature)
    d.clamp_(LOWEST, 0)
    torch.softmax(d, dim=1, out=e)


def weigh(x: Tensor, temperature: float, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Return d = (x - peak) / T, in [LOWEST, 0], and e = exp(d), both fresh; x [n, C], peak [n].

    A row without a finite logit (peak is -inf) has weight 0. d is at most 0, so that numbers from
    outside the row never become infinite.
    """
    d = torch.sub(x, peak.clamp(min=torch.finfo(x.dtype).min)[:, None])
    if temperature != 1:
        d.div_(temperature)
    d.clamp_(LOWEST, 0)
    return d, d.exp()


def _row_sums(x: Tensor) -> Tensor:
    """Sum each row in an order that does not depend on how many rows there are.

    torch splits a row over its threads only if it is alone, so a second row is added.
    """
    if x.shape[0] == 1:
        return torch.cat([x, x]).sum(dim=1)[:1]
    return x.sum(dim=1)


def _joined(parts: list[tuple[Tensor, ...]], x: Tensor, squares: bool) -> list[Tensor]:
    if not parts:
        nothing = x.new_empty(0, dtype=inner_dtype(x))
        return [*[nothing] * (9 if squares else 6), nothing.int()]
    return [torch.cat(columns) for columns in zip(*parts)]
