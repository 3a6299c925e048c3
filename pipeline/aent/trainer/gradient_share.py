"""The size of the entropy bonus's gradient at the logits, and the policy loss's, and their angle.

With L the policy loss and H the mean entropy of a mini-batch, both as functions of the logits:
||dL||^2, ||dH||^2 (of the bonus at coefficient 1) and <dL, dH>, so that the share is known for any
coefficient, including 0. They are exact for a sample of the response tokens (one in sixteen, at
most 64 of a micro-batch) and scaled up to all of them: all three are sums over tokens, so the
scaled sum is an unbiased estimate. Each update and micro-batch draws another sample, the same on
every tensor-parallel rank and after a resume.

**The neutral coefficient.** A small step of the logits against L - lambda H changes H, to first
order, by a multiple of -<dL, dH> + lambda ||dH||^2. This is 0 at lambda* = <dL, dH> / ||dH||^2:
below, learning lowers the entropy; above, the bonus raises it. The squared norm of the policy's
part is mostly noise (one row per sample); in the product, the noise of the samples has mean 0. An
optimizer that scales each parameter changes the step; this is ignored.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from aent.algorithm.losses import InTraining, entropy_bonus, policy_loss
from aent.algorithm.terms import LossTerms
from aent.data.flat import to_device
from aent.entropy import TokenStatistics
from aent.recipe.schema import Recipe

ONE_IN, AT_MOST = 16, 64
PAST = 0.9  # weight of the past in the averages of the neutral coefficient, per update


@dataclass
class Neutral:
    """Moving averages over updates of <dL, dH> and ||dH||^2, whose ratio is lambda*, and of
    ||dL||^2."""

    product: float = 0.0
    square: float = 0.0
    policy_square: float = 0.0

    def add(self, product: float, square: float, policy_square: float) -> float:
        """Add an update, and return lambda*: NaN before any entropy had a gradient. An update whose
        gradients are not finite does not count."""
        if all(map(math.isfinite, (product, square, policy_square))):
            self.product = PAST * self.product + (1 - PAST) * product
            self.square = PAST * self.square + (1 - PAST) * square
            self.policy_square = PAST * self.policy_square + (1 - PAST) * policy_square
        return self.product / self.square if self.square > 0 else math.nan

    @property
    def norm_ratio(self) -> float:
        """||dL|| / ||dH||; NaN before any entropy had a gradient."""
        return math.sqrt(self.policy_square / self.square) if self.square > 0 else math.nan

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def sampled_tokens(count: int, device: torch.device, *numbers: int) -> Tensor:
    """[n] int64: the tokens, of ``count`` > 0, that are measured; a function of ``count`` and of
    numbers that identify the draw."""
    generator = torch.Generator()
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number) % 2**63
    generator.manual_seed(state)
    n = min(-(-count // ONE_IN), AT_MOST)
    return to_device(torch.randperm(count, generator=generator)[:n], device)


def gradient_products(
    logits: Tensor,
    stats: TokenStatistics,
    now: InTraining,
    terms: LossTerms,
    recipe: Recipe,
    count: int,
) -> Tensor:
    """Estimate of (||dL||^2, ||dH||^2, <dL, dH>) of a micro-batch.

    Collective over the tensor-parallel ranks.

    Args:
        logits: [n, V_local] of the sampled tokens, a leaf that requires grad.
        stats: of these logits. now, terms: as for ``policy_loss``, of the sampled tokens.
        count: tokens of the micro-batch.

    Returns:
        [3] float64, with respect to the logits, the weights per token included.
    """
    policy = policy_loss(stats.log_prob, now, terms, recipe.algorithm)
    clamped = recipe.entropy.measure == "clamped"
    entropy = stats.clamped_entropy if clamped else stats.entropy
    sums = (
        (terms.policy_weight * policy.loss).sum(),
        (terms.entropy_weight * entropy_bonus(entropy, terms.smoothing)).sum(),
    )
    of_policy, of_entropy = (
        torch.autograd.grad(value, logits, retain_graph=True)[0].double() for value in sums
    )
    products = torch.stack(
        [of_policy.square().sum(), of_entropy.square().sum(), (of_policy * of_entropy).sum()]
    )
    dist.all_reduce(products, group=parallel_state.get_tensor_model_parallel_group())
    return products * (count / logits.shape[0])
