"""The four functions of the kernels' interface in Triton, for GPUs.

Forward reads the logits once, plus a sample of 2,048 of each row. The sample gives an interval
around rank k; one pass computes the sums and collects the few percent inside the interval; an exact
selection among these follows. Rows whose interval misses the k-th largest are searched by another
kernel, which returns at once for all other rows, so nothing waits for the host. Backward reads once
and writes once.

The numbers are tested with Triton's interpreter, and the kernels compile for a GPU. **They have not
run on one**: the sizes below are reasoned, not tuned.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aent.entropy.kernels import triton_kernels as kernels
from aent.entropy.kernels.interface import Gradient, Scan, Sums

BLOCK = 2048  # columns that a program holds at once
SAMPLE = 2048  # numbers of a row from which its interval is proposed; all of a narrower row
SMALLEST_SAMPLE = 64  # a shard narrower than this proposes nothing
DEVIATIONS = 3.5  # of the rank in the sample, to each side: one row in 2,000 misses
ROWS = 512  # rows whose candidates exist at once, so that they stay in a GPU's L2 cache


def forward(
    x: Tensor, k: int, temperature: float, squares: bool = False
) -> tuple[Sums, Tensor, Tensor]:
    """See the interface (``aent.entropy.kernels``)."""
    inner = _inner(x)
    rows, width = x.shape
    sums = x.new_empty((8 if squares else 5, rows), dtype=inner)
    threshold = x.new_empty(rows, dtype=inner)
    cut = x.new_empty(rows, dtype=torch.int32)
    capacity = max(256, triton.next_power_of_2(width // 10))
    scale = _scale(x, temperature)
    for first in range(0, rows, ROWS):
        block = slice(first, min(first + ROWS, rows))
        part = x[block]
        high, low = _propose(part, k / width)[:2]
        found = _scan(part, scale, low.neg_(), high, capacity, sums[:, block])
        missed = torch.empty_like(found.inside)
        grid = (part.shape[0],)
        counts, candidates = (found.above, found.inside), (found.values, found.columns)
        answer = (threshold[block], cut[block], missed)
        with _device(x):
            kernels.select_kernel[grid](
                k, scale, sums[:, block], rows, *counts, *candidates, *answer,
                CAPACITY=capacity, **_keys(inner), num_warps=16 if capacity > 4096 else 4,
            )  # fmt: skip
            kernels.search_kernel[grid](
                part, x.stride(0), width, k, scale, sums[:, block], rows, *answer,
                BLOCK=BLOCK, **_keys(inner), num_warps=8,
            )  # fmt: skip
    return Sums.of(tuple(sums)), threshold, cut


def propose(x: Tensor, share: float) -> Tensor:
    """See the interface."""
    if x.shape[1] < SMALLEST_SAMPLE:
        return x.new_full((4, x.shape[0]), -math.inf, dtype=_inner(x))
    return _propose(x, share)


def _propose(x: Tensor, share: float) -> Tensor:
    """``propose`` for any number of columns; no bound if the sample has no such rank."""
    rows, width = x.shape
    out = x.new_empty((4, rows), dtype=_inner(x))
    size = min(width, SAMPLE)
    margin = DEVIATIONS * math.sqrt(size * share * (1 - share)) + 1
    first_rank, last_rank = math.floor(share * size - margin), math.ceil(share * size + margin)
    if rows:
        with _device(x):
            kernels.propose_kernel[(rows,)](
                x, x.stride(0), width, first_rank, last_rank, out, rows,
                SAMPLE=SAMPLE, **_keys(out.dtype), num_warps=4,
            )  # fmt: skip
    return out


def scan(
    x: Tensor,
    temperature: float,
    low: Tensor | None,
    high: Tensor | None,
    capacity: int,
    squares: bool = False,
) -> Scan:
    """See the interface."""
    sums = x.new_zeros((8 if squares else 5, x.shape[0]), dtype=_inner(x))
    return _scan(x, _scale(x, temperature), low, high, capacity, sums)


def _scan(
    x: Tensor,
    scale: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    capacity: int,
    sums: Tensor,
) -> Scan:
    """``scan`` into sums [5 or 8, N], rows at any distance."""
    rows, width = x.shape
    above = x.new_empty(rows, dtype=torch.int32)
    inside = torch.empty_like(above)
    values = x.new_empty((rows, capacity), dtype=sums.dtype)
    columns = x.new_empty((rows, capacity), dtype=torch.int32)
    if rows:
        with _device(x):
            kernels.scan_kernel[(rows,)](
                x, x.stride(0), width, scale, low, high, sums, sums.stride(0), above, inside,
                values, columns, capacity, CLAMPED=low is not None, SQUARES=len(sums) == 8,
                BLOCK=BLOCK, num_warps=8,
            )  # fmt: skip
    return Scan(Sums.of(tuple(sums)), above, inside, values, columns)


def backward(x: Tensor, out: Tensor, rows: Gradient, temperature: float, start: int) -> None:
    """See the interface."""
    count, width = x.shape
    if not count or not width:
        return
    if rows.b is None:
        rows = rows._replace(b=torch.zeros_like(rows.a))
    with _device(x):
        kernels.backward_kernel[(count, triton.cdiv(width, BLOCK))](
            x, x.stride(0), out, out.stride(0), width, start, _scale(x, temperature), *rows,
            CLAMPED=rows.kept_a is not None, TARGET=rows.column is not None,
            BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip


def _inner(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _scale(x: Tensor, temperature: float) -> Tensor:
    """1 / T in memory, because Triton turns a Python float into fp32."""
    return x.new_full((1,), 1 / temperature, dtype=_inner(x))


def _keys(inner: torch.dtype) -> dict[str, Any]:
    """Compile-time constants for the unsigned integers that sort like numbers of type ``inner``."""
    bits, unsigned = (64, tl.uint64) if inner == torch.float64 else (32, tl.uint32)
    return {"BITS": bits, "SIGN": 1 << (bits - 1), "UNSIGNED": unsigned}


def _device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
