"""KL from a policy without its unlikeliest tokens to the policy itself, vocabulary sharded.

For each token of a text, A is the set of vocabulary tokens with at least ``ratio`` times the
largest probability (the set of min-p sampling, arXiv 2407.01082), chosen without gradient; q is the
policy p restricted to A and renormalized, a constant. Since q = p / p(A) on A,

    KL(q || p) = -log p(A)      d KL / d z'_j = p_j - q_j

Two all-reduces over the ranks that share the vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy.arguments import (
    check_arguments,
    checked_targets,
    first_derivative_only,
)
from aent.entropy.kernels.torch_path import inner_dtype
from aent.entropy.rows import bounded
from aent.entropy.shard import VocabShard


def min_p_divergence(
    logits: Tensor,
    targets: Tensor,
    ratio: float,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | VocabShard | None = None,
    softcap: float | None = None,
) -> Tensor:
    """KL(q || p) of tokens whose target is in A, and 0, without gradient, of those whose is not.

    Args:
        logits, targets, temperature, vocab_size, tp_group, softcap: as for ``token_statistics``.
            Collective over tp_group; the backward is not.
        ratio: in (0, 1].

    Returns:
        [...] fp32 (float64 for float64), nats, the same on every rank, differentiable; the gradient
        is complete for this rank's columns. Meant for few tokens: it allocates buffers of the
        logits' size.

    Raises:
        ValueError, TypeError: one sentence naming the argument.
        RuntimeError: a backward with create_graph=True.
    """
    check_arguments(logits, targets, temperature)
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}, but must be in (0, 1]")
    logits = bounded(logits, softcap)
    shard = VocabShard.locate(logits.shape[-1], vocab_size, tp_group, logits.device)
    ids = checked_targets(targets.reshape(-1), shard.vocab_size, None)
    flat = logits.reshape(-1, logits.shape[-1])
    return _Divergence.apply(flat, ids, ratio, temperature, shard).view(logits.shape[:-1])


class _Divergence(torch.autograd.Function):
    """logits [N, V_local], targets [N] -> [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        ratio: float,
        temperature: float,
        shard: VocabShard,
    ) -> Tensor:
        x = logits[:, : shard.width].to(inner_dtype(logits))
        infinite = x.new_full((len(x), 1), -math.inf)
        peak = torch.cat([x, infinite], dim=1).amax(dim=1)  # a block may be all padding
        shard.all_reduce(peak, dist.ReduceOp.MAX)
        depth = (x - peak[:, None]) / temperature
        inside, weight = depth >= math.log(ratio), depth.exp()
        ids = torch.arange(shard.start, shard.start + shard.width, device=x.device)
        is_kept = (inside & (ids == targets[:, None])).sum(dim=1).to(x.dtype)  # the target, in A
        total, kept, is_kept = shard.all_reduce(
            torch.stack([weight.sum(dim=1), (weight * inside).sum(dim=1), is_kept])
        )
        ctx.save_for_backward(logits, peak, total, kept, is_kept)
        ctx.temperature, ctx.width, ctx.least = temperature, shard.width, math.log(ratio)
        return is_kept * (total / kept).log()

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        logits, peak, total, kept, is_kept = ctx.saved_tensors
        x = logits[:, : ctx.width].to(g.dtype)
        depth = (x - peak[:, None]) / ctx.temperature
        slope = depth.exp() / total[:, None]
        slope -= torch.where(depth >= ctx.least, depth.exp() / kept[:, None], 0)
        grad = torch.zeros_like(logits)
        grad[:, : ctx.width] = ((g * is_kept / ctx.temperature)[:, None] * slope).to(grad.dtype)
        return grad, *(None,) * 4
