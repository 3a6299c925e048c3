"""Log-probability, entropy and clamped entropy of every token, from vocabulary-sharded logits.

``rows`` has the formulas and does the work; this module checks arguments and connects autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy.arguments import (
    INVALID,
    check_arguments,
    check_softcap,
    checked_targets,
    first_derivative_only,
    kept_count,
)
from aent.entropy.kernels.pages import with_large_pages
from aent.entropy.paper import PAPER_DROP_FRACTION
from aent.entropy.rows import SavedRows, backward_rows, capped, forward_rows
from aent.entropy.shard import VocabShard


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of N tokens, each [...] fp32 (float64 for float64 logits), entropies in nats.

    log_prob: of the target, under the tempered policy. entropy: over the vocabulary.
    clamped_entropy: of the policy renormalized on its kept set. kept_mass: the full policy's
    probability of that set, in [0, 1]; not differentiable, the others are. invalid_rows: int64
    scalar on the device, how many tokens have logits with NaN or +inf, or none above -inf, or a
    target outside the vocabulary.

    If requested, not differentiable: covariance: <d log_prob, d entropy>, with respect to the
    logits over T. This is the change of the entropy, to first order, if the logits take a step of
    length 1 along the gradient of log_prob. entropy_slope: ||d entropy||^2, the same for a step
    along its own gradient.
    """

    log_prob: Tensor
    entropy: Tensor
    clamped_entropy: Tensor
    kept_mass: Tensor
    invalid_rows: Tensor
    covariance: Tensor | None = None
    entropy_slope: Tensor | None = None


def token_statistics(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    drop_fraction: float | None = PAPER_DROP_FRACTION,
    top_k: int | None = None,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | VocabShard | None = None,
    *,
    softcap: float | None = None,
    ignore_index: int | None = None,
    inplace_backward: bool = False,
    raise_on_invalid: bool = False,
    slopes: bool = False,
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
            equals the lower ids. The paper's 0.33 unless top_k is given.
        top_k: K itself, in [1, V]. With neither (None, None) the clamped entropy is the entropy.
        vocab_size: V, if the last columns (over all ranks) are padding: they are in no set, have no
            probability and no gradient. All columns if None.
        tp_group: process group that shares the vocabulary; None for one rank. The call is
            collective over it, with the same number of tokens on every rank; its backward is not.
            Or the ``VocabShard`` that ``VocabShard.locate`` found for it: then no call waits to
            learn where this block lies.
        softcap: c > 0; the policy's logits are c tanh(logits / c), as Gemma 2's, and the gradient
            passes through that. A logit of +-inf is then one of +-c: not masked, not invalid.
        ignore_index: the target of tokens without one (torch's cross entropy has -100): log-prob 0,
            no gradient of it, not invalid. None: no such id.
        inplace_backward: let the backward write the gradient over the logits, which saves a tensor
            of their size. Only for logits that nothing reads after the forward: neither the caller
            nor the backward of the operation that made them (a matrix product does not; for one
            that does, as tanh, torch reports that they were modified). One backward only. Refused
            for rows that share memory, as in an expanded tensor.
        raise_on_invalid: wait for the device and name the first bad token, for debugging.
        slopes: also return ``covariance`` and ``entropy_slope``, from the same pass.

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
    flat = logits.reshape(targets.numel(), logits.shape[-1])  # of no columns too
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    if inplace_backward and flat.shape[0] > 1 and flat.stride(0) < flat.shape[1]:
        raise ValueError("inplace_backward: rows of logits share memory (an expanded tensor?)")
    ids = checked_targets(targets.reshape(-1), shard.vocab_size, ignore_index)
    flags = (inplace_backward, slopes)
    results = _TokenStatistics.apply(flat, ids, temperature, kept, shard, softcap, *flags)
    if raise_on_invalid:
        _raise_on_invalid(results[1].detach(), ids, targets)
    return gathered(results, targets.shape)


def gathered(results: Sequence[Tensor], shape: torch.Size) -> TokenStatistics:
    """Reshape the results of ``forward_rows``, each [N], to the tokens' shape."""
    log_prob, entropy, clamped, kept_mass, *slopes = (r.view(shape) for r in results)
    invalid = (entropy.detach().isnan() | log_prob.detach().isnan()).sum()
    return TokenStatistics(log_prob, entropy, clamped, kept_mass, invalid, *slopes)


def _raise_on_invalid(entropy: Tensor, ids: Tensor, targets: Tensor) -> None:
    rows = (entropy.isnan() | (ids == INVALID)).nonzero()
    if len(rows):
        row = int(rows[0])
        if entropy[row].isnan():
            raise ValueError(f"logits: row {row} has NaN or +inf, or no logit above -inf")
        target = int(targets.reshape(-1)[row])
        raise ValueError(f"targets: row {row} has {target}, which is outside of the vocabulary")


class _TokenStatistics(torch.autograd.Function):
    """logits [N, V_local] -> log_prob, entropy, clamped_entropy, kept_mass and, if requested, the
    ``slopes``, each [N]."""

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
        slopes: bool,
    ) -> tuple[Tensor, ...]:
        *results, saved = forward_rows(
            logits if softcap is None else capped(logits.clone(), softcap),
            targets,
            temperature,
            k,
            shard,
            slopes,
        )
        ctx.save_for_backward(logits, targets, *saved)
        ctx.temperature, ctx.shard, ctx.softcap = temperature, shard, softcap
        ctx.inplace_backward, ctx.spent = inplace_backward, False
        ctx.mark_non_differentiable(*results[3:])
        ctx.set_materialize_grads(False)  # an unused statistic then costs nothing in the backward
        return tuple(results)

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any,
        g_log_prob: Tensor | None,
        g_entropy: Tensor | None,
        g_clamped: Tensor | None,
        *_rest: None,
    ) -> tuple[Tensor | None, ...]:
        if g_log_prob is None and g_entropy is None and g_clamped is None:
            return (None,) * 8
        if ctx.spent:
            raise RuntimeError(
                "token_statistics: the first backward has written the gradient over the logits; "
                "a second one needs inplace_backward=False"
            )
        logits, targets, *saved = ctx.saved_tensors
        grad = logits.detach()
        if not ctx.inplace_backward:
            grad = with_large_pages(torch.empty_like(logits))
        if ctx.softcap is not None:
            logits = capped(grad.copy_(logits), ctx.softcap)
        upstream = (g_log_prob, g_entropy, g_clamped)
        rows = SavedRows(*saved)
        backward_rows(
            logits, targets, rows, ctx.temperature, ctx.shard, *upstream, grad, ctx.softcap
        )
        if ctx.inplace_backward:
            ctx.spent = True
            # so that torch raises an error if another backward needs the logits
            torch.autograd.graph.increment_version(grad)
        return grad, *(None,) * 7
