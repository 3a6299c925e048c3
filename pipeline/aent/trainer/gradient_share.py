"""How hard the entropy bonus pulls on the logits, beside the policy loss.

The norm of each term's gradient with respect to the logits, at coefficient 1 for the bonus, so that
the share can be told for any coefficient, 0 included. It is exact for a sample of the response
tokens (one in sixteen, at most 64 of a micro-batch) and scaled up to all of them: both gradients
are sums of one row per token, so the scaled sum of squares is an unbiased estimate. The sample is
drawn by the number of tokens alone: the same on every tensor-parallel rank, and after a resume.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from aent.algorithm.losses import entropy_bonus, policy_loss
from aent.entropy import TokenStatistics
from aent.recipe.schema import Recipe

ONE_IN, AT_MOST = 16, 64


def sampled_tokens(count: int, device: torch.device) -> Tensor:
    """[n] int64: which of ``count`` > 0 tokens are measured."""
    generator = torch.Generator().manual_seed(count)
    n = min(-(-count // ONE_IN), AT_MOST)
    return torch.randperm(count, generator=generator)[:n].to(device)


def squared_norms(
    logits: Tensor, stats: TokenStatistics, fields: dict[str, Tensor], recipe: Recipe, count: int
) -> Tensor:
    """Estimate of the squared gradient norms of (policy loss, mean entropy) of a micro-batch.

    Collective over the tensor-parallel ranks.

    Args:
        logits: [n, V_local] of the sampled tokens, a leaf that requires grad.
        stats: of these logits; fields: the micro-batch's (as ``policy_loss`` wants them), for them.
        count: tokens of the micro-batch.

    Returns:
        [2] float64, with respect to the logits, the weights per token included.
    """
    policy = policy_loss(stats.log_prob, fields, recipe.algorithm)
    clamped = recipe.entropy.measure == "clamped"
    entropy = stats.clamped_entropy if clamped else stats.entropy
    terms = (
        (fields["policy_weight"] * policy.loss).sum(),
        (fields["entropy_weight"] * entropy_bonus(entropy, fields)).sum(),
    )
    squares = torch.stack(
        [
            torch.autograd.grad(term, logits, retain_graph=True)[0].double().square().sum()
            for term in terms
        ]
    )
    dist.all_reduce(squares, group=parallel_state.get_tensor_model_parallel_group())
    return squares * (count / logits.shape[0])
