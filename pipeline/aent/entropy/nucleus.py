"""Entropy of the policy renormalized on each token's nucleus, from vocabulary-sharded logits.

The nucleus of a token is the smallest set of its likeliest tokens whose probability reaches
``top_p`` (Holtzman et al., arXiv 1904.09751), at most ``top_k`` of them. Tokens as likely as its
last one are included, so that it does not depend on how the vocabulary is sharded. It is chosen
without gradient, like a clamped set. Its size differs from token to token, so it is found by
sorting: every rank sorts its own likeliest tokens, and sends only as many as a token's nucleus can
need (few if the policy is nearly certain).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy.arguments import check_logits, first_derivative_only
from aent.entropy.kernels.torch_path import inner_dtype
from aent.entropy.rows import bounded
from aent.entropy.selection import row_slices
from aent.entropy.shard import VocabShard


def nucleus_entropy(
    logits: Tensor,
    top_p: float,
    top_k: int,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | VocabShard | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Entropy of softmax(logits / temperature) restricted to its nucleus, nats.

    Args:
        logits, temperature, vocab_size, tp_group, softcap: as for ``token_statistics``. Collective
            over tp_group, with the same number of tokens on every rank; the backward is not.
        top_p: in (0, 1], of the tempered policy. top_k: 1 or more.

    Returns:
        [...] fp32 (float64 for float64), the same on every rank, differentiable; the gradient is
        complete for this rank's columns. Without gradient nothing is kept, with it the logits and
        16 bytes a token.

    Raises:
        ValueError, TypeError: one sentence naming the argument.
        RuntimeError: a backward with create_graph=True.
    """
    check_logits(logits, temperature)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, but must be in (0, 1]")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be 1 or more")
    logits = bounded(logits, softcap)
    shard = VocabShard.locate(logits.shape[-1], vocab_size, tp_group, logits.device)
    flat = logits.reshape(-1, logits.shape[-1])
    result = _NucleusEntropy.apply(flat, top_p, min(top_k, shard.vocab_size), temperature, shard)
    return result.view(logits.shape[:-1])


class _NucleusEntropy(torch.autograd.Function):
    """logits [N, V_local] -> [N]."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, top_p: float, top_k: int, temperature: float, shard: VocabShard
    ) -> Tensor:
        rows = len(logits)
        saved = torch.empty(4, rows, dtype=inner_dtype(logits), device=logits.device)
        for part in row_slices(rows, shard.vocab_size // shard.ranks):  # the same on every rank
            saved[:, part] = _forward(logits[part, : shard.width], top_p, top_k, temperature, shard)
        ctx.save_for_backward(logits, saved)
        ctx.temperature, ctx.width = temperature, shard.width
        return saved[3].clone()

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """d H / d z'_j = - q_j (log q_j + H) in the nucleus, q the renormalized policy."""
        logits, (peak, threshold, total, entropy) = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        for part in row_slices(*logits.shape):
            x = logits[part, : ctx.width].to(g.dtype)
            log_q = (x - peak[part, None]) / ctx.temperature - total[part, None].log()
            slope = log_q.exp() * (log_q + entropy[part, None])
            scale = -g[part, None] / ctx.temperature
            inside = x >= threshold[part, None]
            grad[part, : ctx.width] = torch.where(inside, scale * slope, 0).to(grad.dtype)
        return grad, None, None, None, None


def _forward(x: Tensor, top_p: float, top_k: int, temperature: float, shard: VocabShard) -> Tensor:
    """[4, n]: the largest logit, the smallest one in the nucleus, the sum over the nucleus of
    exp((x - largest) / T), and its entropy."""
    x = x.to(inner_dtype(x))
    ordered = x.topk(min(top_k, x.shape[1]), dim=1).values  # descending
    infinite = x.new_full((len(x), 1), -torch.inf)
    peak = torch.cat([ordered[:, :1], infinite], dim=1).amax(dim=1)  # a block may be all padding
    shard.all_reduce(peak, dist.ReduceOp.MAX)

    def weight(values: Tensor) -> Tensor:
        return ((values - peak[:, None]) / temperature).exp()

    total = shard.all_reduce(weight(x).sum(dim=1))
    ordered = _candidates(ordered, weight(ordered) / total[:, None], top_p, shard)
    reached = (weight(ordered) / total[:, None]).cumsum(dim=1)
    last = (reached < top_p).sum(dim=1).clamp(max=min(top_k, ordered.shape[1]) - 1)
    threshold = ordered.gather(1, last[:, None])[:, 0]

    inside = x >= threshold[:, None]
    d = torch.where(inside, (x - peak[:, None]) / temperature, 0)
    e = torch.where(inside, d.exp(), 0)
    kept, weighted = shard.all_reduce(torch.stack([e.sum(dim=1), (e * d).sum(dim=1)]))
    return torch.stack([peak, threshold, kept, kept.log() - weighted / kept])


def _candidates(ordered: Tensor, mass: Tensor, top_p: float, shard: VocabShard) -> Tensor:
    """[n, t m]: all logits that may be in the nuclei, from all ranks, descending.

    Args:
        ordered: [n, k] this rank's likeliest logits, descending; mass: [n, k] their probabilities.
            A logit is in no nucleus if likelier ones on this rank already sum to top_p.
    """
    if shard.group is None:
        return ordered
    before = mass.cumsum(dim=1) - mass
    most = (before < top_p).sum(dim=1).amax().reshape(1)
    m = int(shard.all_reduce(most, dist.ReduceOp.MAX))
    mine = torch.nn.functional.pad(
        ordered[:, :m], (0, m - min(m, ordered.shape[1])), value=-torch.inf
    )
    shares = [torch.empty_like(mine) for _ in range(shard.ranks)]
    dist.all_gather(shares, mine.contiguous(), group=shard.group)
    return torch.cat(shares, dim=1).sort(dim=1, descending=True).values
