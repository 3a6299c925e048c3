"""Log-probability, entropy and clamped entropy of every token, from vocabulary-sharded logits.

``forward_rows`` and ``backward_rows`` do the work, for ``token_statistics`` and for the fused head
alike; the collectives of the former are those of ``sharded.forward``, and the latter has none. With
x the logits of a token, T the temperature, z' = x / T and m = max z', everything comes from a few
sums over the columns

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy import kernels, sharded
from aent.entropy.arguments import (
    IGNORED,
    INVALID,
    PAPER_DROP_FRACTION,
    check_arguments,
    check_softcap,
    checked_targets,
    first_derivative_only,
    kept_count,
)
from aent.entropy.kernels.interface import Gradient
from aent.entropy.kernels.torch_path import inner_dtype
from aent.entropy.selection import VocabShard, row_slices


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of N tokens, each [...] fp32 (float64 for float64 logits), entropies in nats.

    log_prob: of the target, under the tempered policy. entropy: over the vocabulary.
    clamped_entropy: of the policy renormalised on its kept set. kept_mass: the full policy's
    probability of that set, in [0, 1]; not differentiable, the others are. invalid_rows: int64
    scalar on the device, how many tokens have logits with NaN or +inf, or none above -inf, or a
    target outside of the vocabulary.
    """

    log_prob: Tensor
    entropy: Tensor
    clamped_entropy: Tensor
    kept_mass: Tensor
    invalid_rows: Tensor


def token_statistics(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    drop_fraction: float | None = PAPER_DROP_FRACTION,
    top_k: int | None = None,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
    *,
    softcap: float | None = None,
    ignore_index: int | None = None,
    inplace_backward: bool = False,
    raise_on_invalid: bool = False,
) -> TokenStatistics:
    """Compute per-token log-prob, entropy and clamped entropy from this rank's logit columns.

    Args:
        logits: [..., V_local] fp16, bf16, fp32 or float64: this rank's block of columns. Blocks
            follow one another in rank order and may differ in width. -inf is a masked token; a row
            that is all -inf, or has NaN or +inf, gives NaN in its own results only.
        targets: [...] int64 global token ids, the same on all ranks. An id outside of the
            vocabulary, padding included, gives NaN as its log-prob and counts in invalid_rows; the
            entropies are unaffected.
        temperature: T > 0; the policy is softmax(logits / T).
        drop_fraction: in [0, 1); the K = V - int(V * drop_fraction) largest logits are kept, among
            equals the lower ids. The paper's .33 unless top_k is given.
        top_k: K itself, in [1, V]. With neither (None, None) the clamped entropy is the entropy.
        vocab_size: V, where the last columns (over all ranks) are padding: they are in no set, have
            no probability and no gradient. All columns if None.
        tp_group: process group that shares the vocabulary; None for one rank. The call is
            collective over it, with the same number of tokens on every rank; its backward is not.
        softcap: c > 0; the policy's logits are c tanh(logits / c), as Gemma 2's, and the gradient
            passes through that. A logit of +-inf is then one of +-c: not masked, not invalid.
        ignore_index: the target of tokens without one (torch's cross entropy has -100): log-prob 0,
            no gradient of it, not invalid. None: no such id.
        inplace_backward: let the backward write the gradient over the logits, which saves a tensor
            of their size. For logits that nobody reads after the forward: not the caller, and not
            the backward of the operation that made them (a matrix product does not; where one does,
            as tanh, torch says that they were modified). One backward only. Refused for rows that
            share memory, as those of an expanded tensor.
        raise_on_invalid: wait for the device and name the first bad token, for debugging.

    Returns:
        TokenStatistics, the same on every rank; computed in fp32 for 16- and 32-bit logits, in
        float64 for float64. Without gradient nothing is kept; with it the logits and 28 bytes a
        token (fp32) besides its target. Each rank's gradient is that of its own columns, complete.

    Raises:
        ValueError, TypeError: one sentence naming the argument.
        RuntimeError: a second backward with inplace_backward, or one with create_graph=True: there
            are no second derivatives.
    """
    check_arguments(logits, targets, temperature)
    check_softcap(softcap)
    shard = VocabShard.locate(logits.shape[-1], vocab_size, tp_group, logits.device)
    kept = kept_count(drop_fraction, top_k, shard.vocab_size)
    flat = logits.reshape(-1, logits.shape[-1])
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    if inplace_backward and flat.shape[0] > 1 and flat.stride(0) < flat.shape[1]:
        raise ValueError("inplace_backward: rows of logits share memory (an expanded tensor?)")
    ids = checked_targets(targets.reshape(-1), shard.vocab_size, ignore_index)
    results = _TokenStatistics.apply(flat, ids, temperature, kept, shard, softcap, inplace_backward)
    if raise_on_invalid:
        _raise_on_invalid(results[1].detach(), ids, targets)
    return gathered(results, targets.shape)


def gathered(results: Sequence[Tensor], shape: torch.Size) -> TokenStatistics:
    """Bring log_prob, entropy, clamped_entropy and kept_mass, each [N], into the tokens' shape."""
    log_prob, entropy, clamped, kept_mass = (r.view(shape) for r in results)
    invalid = (entropy.detach().isnan() | log_prob.detach().isnan()).sum()
    return TokenStatistics(log_prob, entropy, clamped, kept_mass, invalid)


def _raise_on_invalid(entropy: Tensor, ids: Tensor, targets: Tensor) -> None:
    rows = (entropy.isnan() | (ids == INVALID)).nonzero()
    if len(rows):
        row = int(rows[0])
        if entropy[row].isnan():
            raise ValueError(f"logits: row {row} has NaN or +inf, or no logit above -inf")
        target = int(targets.reshape(-1)[row])
        raise ValueError(f"targets: row {row} has {target}, which is outside of the vocabulary")


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
        softcap: float | None,
        inplace_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_prob, entropy, clamped, kept_mass, saved = forward_rows(
            logits if softcap is None else capped(logits.clone(), softcap),
            targets,
            temperature,
            k,
            shard,
        )
        ctx.save_for_backward(logits, targets, *saved)
        ctx.temperature, ctx.shard, ctx.softcap = temperature, shard, softcap
        ctx.inplace_backward, ctx.spent = inplace_backward, False
        ctx.mark_non_differentiable(kept_mass)
        ctx.set_materialize_grads(False)  # an unused statistic then costs nothing in the backward
        return log_prob, entropy, clamped, kept_mass

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any,
        g_log_prob: Tensor | None,
        g_entropy: Tensor | None,
        g_clamped: Tensor | None,
        _g_kept_mass: None,
    ) -> tuple[Tensor | None, ...]:
        if g_log_prob is None and g_entropy is None and g_clamped is None:
            return (None,) * 7
        if ctx.spent:
            raise RuntimeError(
                "token_statistics: the first backward has written the gradient over the logits; "
                "a second one needs inplace_backward=False"
            )
        logits, targets, *saved = ctx.saved_tensors
        grad = logits.detach() if ctx.inplace_backward else torch.empty_like(logits)
        if ctx.softcap is not None:
            logits = capped(grad.copy_(logits), ctx.softcap)
        upstream = (g_log_prob, g_entropy, g_clamped)
        rows = SavedRows(*saved)
        backward_rows(
            logits, targets, rows, ctx.temperature, ctx.shard, *upstream, grad, ctx.softcap
        )
        if ctx.inplace_backward:
            ctx.spent = True
            # so that torch objects where another backward wants the logits
            torch.autograd.graph.increment_version(grad)
        return grad, *(None,) * 6


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
        targets: [N] int64 global ids, IGNORED or INVALID.
        k: in [1, shard.vocab_size].

    Collective over ``shard.group``; builds no graph; keeps no reference to ``x``.
    """
    x = x.detach()[:, : shard.width]
    backend = kernels.choose(x)
    target = _own_target_logits(x, targets, shard)
    threshold: Tensor | None = None
    cut: Tensor | None = None
    if shard.group is not None:
        target, sums, threshold, cut = sharded.forward(backend, x, target, k, temperature, shard)
    elif k == shard.vocab_size:
        sums = backend.scan(x, temperature, None, None, 0).sums
    else:
        sums, threshold, cut = backend.forward(x, k, temperature)

    peak = sums.peak
    total = torch.where(peak == -math.inf, math.nan, sums.total)  # every token masked
    log_total = total.log()
    entropy = log_total - sums.weighted / total
    kept_total, clamped = total, entropy.clone()
    if threshold is not None:
        kept_total = torch.where(total.isnan(), math.nan, sums.kept_total)
        clamped = kept_total.log() - sums.kept_weighted / kept_total
    log_prob = (target - peak) / temperature - log_total
    log_prob = torch.where(targets >= 0, log_prob, torch.where(targets == IGNORED, 0, math.nan))
    saved = SavedRows(peak, total, kept_total, entropy, clamped, threshold, cut)
    return log_prob, entropy, clamped, kept_total / total, saved


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
    ``softcap`` that with respect to what ``capped`` made ``x`` of.

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
        # an invalid target's is NaN, but where nobody has used its log-prob
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
    for part in row_slices(*x.shape):  # so that the slopes of few rows are held
        slope = 1 - (x[part] / softcap).square_()
        of_part = Gradient(*(None if v is None else v[part] for v in rows))  # type: ignore[arg-type]
        kernels.choose(x).backward(x[part], out[part], of_part, temperature, shard.start)
        out[part] *= slope


def capped(logits: Tensor, softcap: float) -> Tensor:
    """c tanh(logits / c), in place: Gemma 2's bound on logits (arXiv 2408.00118)."""
    return logits.div_(softcap).tanh_().mul_(softcap)


def _own_target_logits(x: Tensor, targets: Tensor, shard: VocabShard) -> Tensor:
    """Return each target's logit where it is in this shard and else 0, [N] in the inner dtype."""
    column, owned = _local_targets(targets, shard)
    found = torch.zeros(len(targets), dtype=inner_dtype(x), device=x.device)
    if shard.width:
        found = torch.where(owned, x.gather(1, column[:, None])[:, 0].to(found.dtype), found)
    return found


def _local_targets(targets: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return each target's column in this block (0 where it has none), and whether it has one."""
    column = targets - shard.start
    owned = (column >= 0) & (column < shard.width)
    return torch.where(owned, column, 0), owned
