"""Log-probability, entropy and clamped entropy of every token, from vocabulary-sharded logits.

``forward_rows`` and ``backward_rows`` do the work, for ``token_statistics`` and for the fused head
alike; every collective of the forward is in the former, below ``select_kept`` (selection.py), and
the backward has none. With x the logits of a token, T the
temperature, z' = x / T and m = max z', everything comes from a few sums over the columns

    S  = sum exp(z' - m)            S1 = sum exp(z' - m) (z' - m)      over the vocabulary
    SA = sum exp(z' - m)            SA1 = sum exp(z' - m) (z' - m)     over the kept set A

    log_prob = z'_y - m - log S     entropy = log S - S1/S     clamped_entropy = log SA - SA1/SA

in which nothing cancels: both terms of an entropy are positive or zero. The gradient with respect
to z' is exp(z' - m) (a + b (z' - m)), (a, b) one pair per token for the kept and one for the other
columns, plus the upstream gradient of log_prob in the target's column.

Clamped entropy: AEnt, arXiv 2509.03493. Structure after Megatron-core's vocabulary-parallel cross
entropy (megatron/core/tensor_parallel/cross_entropy.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy.selection import KeptSet, VocabShard, row_slices, select_kept

# The paper's value. The default argument is this very object, by which a call that gives top_k
# alone is told from one that gives both.
PAPER_DROP_FRACTION: Final = float("0.33")

# exp underflows to 0 long before this in every dtype, and 0 * LOWEST is 0: a masked logit (-inf)
# then takes part in no sum (0 log 0 = 0) and has no gradient.
LOWEST = -1000.0


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of N tokens, each [...] fp32 (float64 for float64 logits), entropies in nats.

    log_prob: of the target, under the tempered policy. entropy: over the vocabulary.
    clamped_entropy: of the policy renormalised on its kept set. kept_mass: the full policy's
    probability of that set, in [0, 1]; not differentiable, the others are.
    """

    log_prob: Tensor
    entropy: Tensor
    clamped_entropy: Tensor
    kept_mass: Tensor


def token_statistics(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    drop_fraction: float | None = PAPER_DROP_FRACTION,
    top_k: int | None = None,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
) -> TokenStatistics:
    """Compute per-token log-prob, entropy and clamped entropy from this rank's logit columns.

    Args:
        logits: [..., V_local] fp16, bf16, fp32 or float64: this rank's block of columns. Blocks
            follow one another in rank order and may differ in width. -inf is a masked token; a row
            that is all -inf, or has NaN or +inf, gives NaN in its own results only.
        targets: [...] int64 global token ids, the same on all ranks. Not checked against the
            vocabulary (it would cost a synchronisation): the log-prob of an id outside means
            nothing, the entropies are unaffected.
        temperature: T > 0; the policy is softmax(logits / T).
        drop_fraction: in [0, 1); the K = V - int(V * drop_fraction) largest logits are kept, among
            equals the lower ids. The paper's .33 unless top_k is given.
        top_k: K itself, in [1, V]. With neither (None, None) the clamped entropy is the entropy.
        vocab_size: V, where the last columns (over all ranks) are padding: they are in no set, have
            no probability and no gradient. All columns if None.
        tp_group: process group that shares the vocabulary; None for one rank. The call is
            collective over it, with the same number of tokens on every rank; its backward is not.

    Returns:
        TokenStatistics, the same on every rank; computed in fp32 for 16- and 32-bit logits, in
        float64 for float64. Without gradient nothing is kept; with it the logits and 40 bytes a
        token (fp32). Each rank's gradient is that of its own columns, complete.

    Raises:
        ValueError, TypeError: one sentence naming the argument.
    """
    check_arguments(logits, targets, temperature)
    shard = VocabShard.locate(logits.shape[-1], vocab_size, tp_group, logits.device)
    kept = kept_count(drop_fraction, top_k, shard.vocab_size)
    flat = logits.reshape(-1, logits.shape[-1])
    results = _TokenStatistics.apply(flat, targets.reshape(-1), temperature, kept, shard)
    return TokenStatistics(*(r.view(targets.shape) for r in results))


def check_arguments(
    logits: Tensor, targets: Tensor, temperature: float, name: str = "logits"
) -> None:
    """Raise as ``token_statistics`` does; ``name``: what the caller calls its first argument."""
    if logits.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{name} must be fp16, bf16, fp32 or float64, not {logits.dtype}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 token ids, not {targets.dtype}")
    if logits.dim() == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, but {name} of shape {tuple(logits.shape)}"
            f" need {tuple(logits.shape[:-1])}"
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}, but must be finite and above 0")


def kept_count(drop_fraction: float | None, top_k: int | None, vocab_size: int) -> int:
    """Return K; it is V where nothing is clamped."""
    if top_k is None:
        if drop_fraction is None:
            return vocab_size
        if not 0 <= drop_fraction < 1:
            raise ValueError(f"drop_fraction is {drop_fraction}, but must be in [0, 1)")
        return vocab_size - int(vocab_size * drop_fraction)
    if drop_fraction is not None and drop_fraction is not PAPER_DROP_FRACTION:
        raise ValueError("drop_fraction and top_k are both given: give one of them")
    if not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k is {top_k}, but must be in [1, {vocab_size}]")
    return top_k


class _TokenStatistics(torch.autograd.Function):
    """logits [N, V_local] -> log_prob, entropy, clamped_entropy, kept_mass, each [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        temperature: float,
        k: int,
        shard: VocabShard,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_prob, entropy, clamped, kept_mass, saved = forward_rows(
            logits, targets, temperature, k, shard
        )
        ctx.save_for_backward(logits, targets, *saved)
        ctx.temperature, ctx.shard = temperature, shard
        ctx.mark_non_differentiable(kept_mass)
        ctx.set_materialize_grads(False)  # an unused statistic then costs nothing in the backward
        return log_prob, entropy, clamped, kept_mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        g_log_prob: Tensor | None,
        g_entropy: Tensor | None,
        g_clamped: Tensor | None,
        _g_kept_mass: None,
    ) -> tuple[Tensor | None, None, None, None, None]:
        logits, targets, *saved = ctx.saved_tensors
        if g_log_prob is None and g_entropy is None and g_clamped is None:
            return None, None, None, None, None
        grad = torch.empty_like(logits)
        upstream = (g_log_prob, g_entropy, g_clamped)
        backward_rows(
            logits, targets, SavedRows(*saved), ctx.temperature, ctx.shard, *upstream, out=grad
        )
        return grad, None, None, None, None


class SavedRows(NamedTuple):
    """What the backward needs of N rows besides their logits: a few numbers each, by rows.

    threshold and cut are None where nothing was clamped.
    """

    peak: Tensor
    total: Tensor
    kept_total: Tensor
    entropy: Tensor
    clamped: Tensor
    threshold: Tensor | None
    cut: Tensor | None


def forward_rows(
    x: Tensor, targets: Tensor, temperature: float, k: int, shard: VocabShard
) -> tuple[Tensor, Tensor, Tensor, Tensor, SavedRows]:
    """Compute log_prob, entropy, clamped_entropy and kept_mass of each row, and what to save.

    Args:
        x: [N, V_local], this rank's block; columns from ``shard.width`` on are padding.
        targets: [N] int64 global ids.
        k: in [1, shard.vocab_size].

    Collective over ``shard.group``; builds no graph; keeps no reference to ``x``.
    """
    x = x.detach()[:, : shard.width]
    kept = None if k == shard.vocab_size else select_kept(x, k, shard)
    peak = shard.all_reduce(_peak(x, temperature), dist.ReduceOp.MAX)
    sums = shard.all_reduce(_sums(x, targets, temperature, peak, kept, shard))

    target, total, weighted, kept_total, kept_weighted = sums
    log_total = total.log()
    entropy = log_total - weighted / total
    if kept is None:
        kept_total, clamped = total, entropy.clone()
        saved = SavedRows(peak, total, kept_total, entropy, clamped, None, None)
    else:
        clamped = kept_total.log() - kept_weighted / kept_total
        saved = SavedRows(peak, total, kept_total, entropy, clamped, kept.threshold, kept.cut)
    return target - log_total, entropy, clamped, kept_total / total, saved


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
) -> None:
    """Write the gradient with respect to ``x`` into ``out``, which may be ``x`` itself.

    x, targets, saved: as in ``forward_rows``. g_*: [N] upstream gradients, None for zero. out:
    [N, V_local] of x's dtype; padding columns get 0. Not collective.
    """
    peak, total, kept_total, entropy, clamped, threshold, cut = saved
    if threshold is None and g_clamped is not None:  # not clamped: the plain entropy again
        g_entropy = g_clamped if g_entropy is None else g_entropy + g_clamped
        g_clamped = None

    # d/dz' = exp(z' - m) (a + b (z' - m)), per row; 1/T makes it d/dx.
    scale = 1 / temperature
    a, b = torch.zeros_like(peak), None
    if g_log_prob is not None:
        a = a - scale * g_log_prob / total
    if g_entropy is not None:
        a = a + scale * g_entropy * (total.log() - entropy) / total
        b = -scale * g_entropy / total
    kept, kept_a, kept_b = None, None, None
    if g_clamped is not None and threshold is not None and cut is not None:
        kept = KeptSet(threshold, cut)
        kept_a = scale * g_clamped * (kept_total.log() - clamped) / kept_total
        kept_b = -scale * g_clamped / kept_total

    out[:, shard.width :] = 0
    for rows in row_slices(x.shape[0], shard.width):
        chunk = x[rows, : shard.width].to(peak.dtype)
        d = _shifted(chunk, temperature, peak[rows])
        mask = None if kept is None else kept.mask(chunk, rows, shard.start)
        del chunk
        into = out[rows, : shard.width]
        p = torch.exp(d, out=into if into.dtype == d.dtype else torch.empty_like(d))
        if mask is not None and kept_a is not None and kept_b is not None:
            term = torch.addcmul(kept_a[rows, None], kept_b[rows, None], d)
            term *= mask
            if b is not None:
                term.addcmul_(d, b[rows, None])
            p.mul_(term.add_(a[rows, None]))
        elif b is not None:
            p.mul_(torch.addcmul(a[rows, None], b[rows, None], d))
        else:
            p.mul_(a[rows, None])
        if g_log_prob is not None and shard.width:
            column, owned = _local_targets(targets[rows], shard)
            ones = torch.where(owned, scale * g_log_prob[rows], 0).to(p.dtype)
            p.scatter_add_(1, column[:, None], ones[:, None])
        if p is not into:
            into.copy_(p)


def _inner_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _peak(x: Tensor, temperature: float) -> Tensor:
    """Return the largest z' of each row, [N] in the inner dtype; -inf for a block of padding."""
    if not x.shape[1]:
        return torch.full((x.shape[0],), -math.inf, dtype=_inner_dtype(x), device=x.device)
    return x.amax(dim=1).to(_inner_dtype(x)) / temperature


def _shifted(x: Tensor, temperature: float, peak: Tensor) -> Tensor:
    """Return z' - m, at least LOWEST, of a chunk [n, width] in the inner dtype; a fresh buffer."""
    d = x - peak[:, None] if temperature == 1 else (x / temperature).sub_(peak[:, None])
    return d.clamp_(min=LOWEST)


def _sums(
    x: Tensor,
    targets: Tensor,
    temperature: float,
    peak: Tensor,
    kept: KeptSet | None,
    shard: VocabShard,
) -> Tensor:
    """Return this shard's part of (z'_y - m, S, S1, SA, SA1), [5, N]; without ``kept`` SA is 0."""
    sums = torch.zeros(5, x.shape[0], dtype=peak.dtype, device=x.device)
    if not x.shape[1]:
        return sums
    column, owned = _local_targets(targets, shard)
    target = x.gather(1, column[:, None]).squeeze(1).to(peak.dtype) / temperature - peak
    sums[0] = torch.where(owned, target, 0)
    for rows in row_slices(*x.shape):
        chunk = x[rows].to(peak.dtype)
        d = _shifted(chunk, temperature, peak[rows])
        e = d.exp()
        sums[1, rows] = _row_sums(e)
        d.mul_(e)
        sums[2, rows] = _row_sums(d)
        if kept is not None:
            mask = kept.mask(chunk, rows, shard.start)
            sums[3, rows] = _row_sums(e.mul_(mask))
            sums[4, rows] = _row_sums(d.mul_(mask))
    return sums


def _row_sums(x: Tensor) -> Tensor:
    """Sum each row in an order that does not depend on how many rows there are.

    torch splits a lone row over its threads, and only a lone one: give it company.
    """
    if x.shape[0] == 1:
        return torch.cat([x, x]).sum(dim=1)[:1]
    return x.sum(dim=1)


def _local_targets(targets: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return each target's column in this block (0 where it has none), and whether it has one."""
    column = targets - shard.start
    owned = (column >= 0) & (column < shard.width)
    return torch.where(owned, column, 0), owned
