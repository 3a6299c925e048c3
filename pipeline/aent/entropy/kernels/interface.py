"""The interface of the backends: what token statistics compute on one shard.

A backend has the four functions below. ``torch_path`` is made of torch operations and runs
anywhere; ``c_path`` is a C library for CPUs, ``triton_path`` is for GPUs; ``kernels.choose`` says
which one serves a tensor. None of them communicates:
forward_rows (rows.py) runs the collectives between them.

Common to all. x [N, width] holds the real columns of this shard, last dimension contiguous, rows
at any stride, fp16, bf16, fp32 or float64; ``inner`` is fp32, float64 for float64. With m the
largest x of a row and d = (x - m) / T, a column weighs e = exp(d), and -inf weighs 0 with 0 log 0
= 0. Results of a row depend on that row alone, bit for bit: not on the rows around it, on how many
there are, or on the number of threads. A row with NaN or +inf ends with NaN in its sums (anything
in the rest); it spoils no other. A row of -inf alone has sums of 0. Sums are taken by blocks: a
running fp32 sum loses small terms.

forward(x, k, temperature, squares) -> Sums, threshold, cut
    One rank alone. threshold: inner [N], a value t such that the k kept columns are those with
    x > t, and those with x == t and column <= cut; 1 <= k < width. cut: int32 [N]; NO_CUT if
    all ties are kept. kept_total and kept_weighted are over the kept columns.

propose(x, share) -> inner [4, N]
    From a sample of the row, an interval that likely holds the row's quantile with ``share`` (k / V
    of the whole vocabulary) of the logits above it: high, -low, and the sample's largest and
    negated smallest finite values. A maximum over shards makes them one interval for all. A block
    too narrow for a sample (fewer than 1024 columns) gives -inf for the first two, and -inf for all
    if it has no finite value.

scan(x, temperature, low, high, capacity, squares) -> Scan
    One pass over x. kept_total and kept_weighted are over the columns with x > high. low, high:
    inner [N], or both None if nothing is clamped (then kept sums, counts and candidates are
    left out).

backward(x, out, rows, temperature, start) -> None
    Write e * (a + b d) of each column, kept columns with kept_a and kept_b added to a and b, plus
    g_target in the target's column; out is like x and may be x itself. See Gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

NO_CUT: Final = torch.iinfo(torch.int32).max  # tie cut of a row whose ties are all kept


class Sums(NamedTuple):
    """Sums over a row's columns, inner [N] each, relative to the row's largest logit."""

    peak: Tensor  # the largest logit as given, -inf for a shard without columns
    total: Tensor  # sum of e
    weighted: Tensor  # sum of e d
    kept_total: Tensor  # the same over the kept columns
    kept_weighted: Tensor
    squares: tuple[Tensor, ...] = ()  # sums of e^2, e^2 d and e^2 d^2, if requested

    @classmethod
    def of(cls, columns: Sequence[Tensor]) -> Sums:
        """Undo ``columns``."""
        peak, total, weighted, kept_total, kept_weighted, *squares = columns
        return cls(peak, total, weighted, kept_total, kept_weighted, tuple(squares))

    @property
    def columns(self) -> list[Tensor]:
        """All of them in one tensor."""
        return [*self[:5], *self.squares]


class Scan(NamedTuple):
    """One shard's pass over its logits, given an interval [low, high] per row."""

    sums: Sums
    above: Tensor  # int32 [N]: columns with x > high
    inside: Tensor  # int32 [N]: columns with low <= x <= high
    values: Tensor  # inner [N, capacity]: the logits inside, in the order of their columns
    columns: Tensor  # int32 [N, capacity]: their columns in this shard
    # Beyond a row's ``inside`` entries, both hold anything; where inside > capacity, everywhere.


class Gradient(NamedTuple):
    """The coefficients of N rows' gradient; inner [N] unless stated otherwise."""

    peak: Tensor  # over all shards
    a: Tensor
    b: Tensor | None  # None if the plain entropy has no gradient
    kept_a: Tensor | None  # None, as kept_b, if no clamped entropy has a gradient
    kept_b: Tensor | None
    threshold: Tensor | None  # with cut, used only if kept_a is given
    cut: Tensor | None  # int32, global ids: a tie is kept if start + column <= cut
    column: Tensor | None  # int64: the target's column in this shard, -1 if it has none
    g_target: Tensor | None  # None, as column, if log_prob has no gradient


class Backend(Protocol):
    """The type of a backend with the functions above."""

    def forward(
        self, x: Tensor, k: int, temperature: float, squares: bool = False
    ) -> tuple[Sums, Tensor, Tensor]: ...

    def propose(self, x: Tensor, share: float) -> Tensor: ...

    def scan(
        self,
        x: Tensor,
        temperature: float,
        low: Tensor | None,
        high: Tensor | None,
        capacity: int,
        squares: bool = False,
    ) -> Scan: ...

    def backward(
        self, x: Tensor, out: Tensor, rows: Gradient, temperature: float, start: int
    ) -> None: ...
