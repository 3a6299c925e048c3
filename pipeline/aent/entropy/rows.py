"""The work on rows of logits, for ``token_statistics`` and for the chunked head alike.

The collectives of ``forward_rows`` are those of ``sharded.forward``, ``backward_rows`` has none.
With x the logits of a token, T the temperature, z' = x / T and m = max z', everything comes from a
few sums over the columns

    S  = sum exp(z' - m)            S1 = sum exp(z' - m) (z' - m)      over the vocabulary
    SA = sum exp(z' - m)            SA1 = sum exp(z' - m) (z' - m)     over the kept set A

    log_prob = z'_y - m - log S     entropy = log S - S1/S     clamped_entropy = log SA - SA1/SA

in which nothing cancels: both terms of an entropy are positive or zero. The gradient with respect
to z' is exp(z' - m) (a + b (z' - m)), (a, b) one pair per token for the kept and one for the other
columns, plus the upstream gradient of log_prob in the target's column.

If requested, the same pass adds up exp(2 (z' - m)) (z' - m)^i, i = 0, 1, 2: S2, S21, S22. With
mu = S1/S they give exactly what a step along a gradient would change: since
d H / dz'_j = -p_j (log p_j + H) = -p_j (z'_j - m - mu),

    <d log_prob, dH> = -p_y (log p_y + H) + sum p^2 (log p + H)    = ... + (S21 - mu S2) / S^2
    ||dH||^2         = sum p^2 (log p + H)^2                 = (S22 - 2 mu S21 + mu^2 S2) / S^2

Clamped entropy: AEnt, arXiv 2509.03493. Structure after Megatron-core's vocabulary-parallel cross
entropy (megatron/core/tensor_parallel/cross_entropy.py).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aent.entropy import kernels, sharded
from aent.entropy.arguments import IGNORED, INVALID, check_softcap
from aent.entropy.kernels.interface import Gradient, Sums
from aent.entropy.kernels.torch_path import inner_dtype
from aent.entropy.selection import row_slices
from aent.entropy.shard import VocabShard


class SavedRows(NamedTuple):
    """What the backward needs of N rows besides their logits: a few numbers per row.

    threshold and cut are None if nothing was clamped.
    """

    peak: Tensor
    total: Tensor
    kept_total: Tensor
    entropy: Tensor
    clamped: Tensor
    threshold: Tensor | None
    cut: Tensor | None


def forward_rows(
    x: Tensor,
    targets: Tensor,
    temperature: float,
    k: int,
    shard: VocabShard,
    slopes: bool = False,
    unsettled: list[Tensor] | None = None,
) -> tuple[Any, ...]:
    """Compute log_prob, entropy, clamped_entropy and kept_mass of each row, with ``slopes``
    covariance and entropy_slope as well, each [N], and last the SavedRows.

    Args:
        x: [N, V_local], this rank's block; columns from ``shard.width`` on are padding.
        targets: [N] int64 global ids, IGNORED or INVALID.
        k: in [1, shard.vocab_size].
        unsettled: as in ``sharded.forward``; nothing is appended if no row can be left.

    Collective over ``shard.group``; builds no graph; keeps no reference to ``x``.
    """
    x = x.detach()[:, : shard.width]
    backend = kernels.choose(x)
    target = _own_target_logits(x, targets, shard)
    threshold: Tensor | None = None
    cut: Tensor | None = None
    if shard.group is not None:
        target, sums, threshold, cut = sharded.forward(
            backend, x, target, k, temperature, shard, slopes, unsettled
        )
    elif k == shard.vocab_size:
        sums = backend.scan(x, temperature, None, None, 0, slopes).sums
    else:
        sums, threshold, cut = backend.forward(x, k, temperature, slopes)

    peak = sums.peak
    total = torch.where(peak == -math.inf, math.nan, sums.total)  # every token masked
    log_total = total.log()
    entropy = log_total - sums.weighted / total
    kept_total, clamped = total, entropy.clone()
    if threshold is not None:
        kept_total = torch.where(total.isnan(), math.nan, sums.kept_total)
        clamped = kept_total.log() - sums.kept_weighted / kept_total
    none = torch.where(targets == IGNORED, 0, math.nan)
    depth = (target - peak) / temperature
    log_prob = torch.where(targets >= 0, depth - log_total, none)
    saved = SavedRows(peak, total, kept_total, entropy, clamped, threshold, cut)
    results = [log_prob, entropy, clamped, kept_total / total]
    if slopes:
        covariance, slope = _slopes(sums, total, depth)
        results += [torch.where(targets >= 0, covariance, none).to(depth.dtype), slope]
    return *results, saved


def _slopes(sums: Sums, total: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """(covariance float64, entropy_slope), [N]; depth: (x_y - peak) / T. The differences of sums of
    squares are taken in float64: they may be small beside the sums."""
    square, by_d, by_dd = (s.double() / total.double().square() for s in sums.squares)
    mean, depth64 = sums.weighted.double() / total.double(), depth.double()
    p = depth64.exp() / total.double()
    own = torch.where(p == 0, 0, p * (depth64 - mean))  # 0 log 0 = 0
    slope = by_dd - 2 * mean * by_d + mean.square() * square
    return by_d - mean * square - own, slope.clamp(min=0).to(depth.dtype)


def backward_rows(
    x: Tensor,
    targets: Tensor,
    saved: SavedRows,
    temperature: float,
    shard: VocabShard,
    g_log_prob: Tensor | None,
    g_entropy: Tensor | None,
    g_clamped: Tensor | None,
    out: Tensor,
    softcap: float | None = None,
) -> None:
    """Write the gradient with respect to ``x`` into ``out``, which may be ``x`` itself; with
    ``softcap``, the gradient with respect to the logits before ``capped``.

    x, targets, saved: as in ``forward_rows``. g_*: [N] upstream gradients, None for zero. out:
    [N, V_local] of x's dtype; padding columns get 0. Not collective.
    """
    peak, total, kept_total, entropy, clamped, threshold, cut = saved
    if threshold is None and g_clamped is not None:  # not clamped: the plain entropy again
        g_entropy = g_clamped if g_entropy is None else g_entropy + g_clamped
        g_clamped = None

    # d/dz' = exp(z' - m) (a + b (z' - m)), per row; 1/T makes it d/dx.
    scale = 1 / temperature
    a = torch.zeros_like(peak)
    b: Tensor | None = None
    kept_a: Tensor | None = None
    kept_b: Tensor | None = None
    column, g_target = None, None
    if g_log_prob is not None:
        # NaN for an invalid target, unless its log-prob is not used
        none = torch.where((targets == INVALID) & (g_log_prob != 0), math.nan, 0)
        g_target = scale * torch.where(targets >= 0, g_log_prob, none)
        a = a - g_target / total
        column, owned = _local_targets(targets, shard)
        column = torch.where(owned, column, -1)
    if g_entropy is not None:
        a = a + scale * g_entropy * (total.log() - entropy) / total
        b = -scale * g_entropy / total
    if g_clamped is not None:
        kept_a = scale * g_clamped * (kept_total.log() - clamped) / kept_total
        kept_b = -scale * g_clamped / kept_total

    out[:, shard.width :] = 0
    x, out = x[:, : shard.width], out[:, : shard.width]
    rows = Gradient(peak, a, b, kept_a, kept_b, threshold, cut, column, g_target)
    if softcap is None:
        kernels.choose(x).backward(x, out, rows, temperature, shard.start)
        return
    for part in row_slices(*x.shape):  # a few rows at a time, to hold few slopes
        slope = 1 - (x[part] / softcap).square_()
        of_part = Gradient(*(None if v is None else v[part] for v in rows))  # type: ignore[arg-type]
        kernels.choose(x).backward(x[part], out[part], of_part, temperature, shard.start)
        out[part] *= slope


def capped(logits: Tensor, softcap: float) -> Tensor:
    """c tanh(logits / c), in place: Gemma 2's bound on logits (arXiv 2408.00118)."""
    return logits.div_(softcap).tanh_().mul_(softcap)


def bounded(logits: Tensor, softcap: float | None) -> Tensor:
    """The same out of place and differentiable; without a bound, the logits themselves. Raises
    ValueError for an invalid bound."""
    check_softcap(softcap)
    return logits if softcap is None else (logits / softcap).tanh() * softcap


def _own_target_logits(x: Tensor, targets: Tensor, shard: VocabShard) -> Tensor:
    """Return each target's logit if it is in this shard, else 0; [N] in the inner dtype."""
    column, owned = _local_targets(targets, shard)
    found = torch.zeros(len(targets), dtype=inner_dtype(x), device=x.device)
    if shard.width:
        found = torch.where(owned, x.gather(1, column[:, None])[:, 0].to(found.dtype), found)
    return found


def _local_targets(targets: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return each target's column in this block (0 if it has none), and whether it has one."""
    column = targets - shard.start
    owned = (column >= 0) & (column < shard.width)
    return torch.where(owned, column, 0), owned
