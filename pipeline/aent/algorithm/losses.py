"""Policy losses per token. How tokens are averaged is ``aggregation``'s business, not theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aent.recipe.schema import AlgorithmSection


@dataclass
class PolicyLoss:
    """What the policy loss says of N response tokens."""

    loss: Tensor  # [N] fp32, differentiable
    clipped: Tensor  # [N] bool: the clip (low, high or dual) has cut this token's gradient
    kl_reference: Tensor | None  # [N] fp32 (k3 estimate), None without a reference


def policy_loss(
    log_prob: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    settings: AlgorithmSection,
    reference_logprobs: Tensor | None = None,
    importance: Tensor | None = None,
) -> PolicyLoss:
    """GRPO's clipped surrogate with its options, per token.

    - clipped surrogate, r = pi / pi_old: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
      (PPO, arXiv 1707.06347 eq. 7; asymmetric bounds: DAPO, arXiv 2503.14476 eq. 10)
    - dual clip, only where A < 0: at most -dual_clip * A (arXiv 1912.09729 eq. 5)
    - KL to a frozen reference: + kl_coefficient * (e^d - d - 1), d = log pi_ref - log pi
      (GRPO, arXiv 2402.03300 eq. 4; Schulman's k3 estimate)
    - importance: a detached factor on the surrogate, for engine-versus-trainer mismatch

    Args:
        log_prob: [N] fp32, differentiable: tempered log-probs of the policy in training.
        old_logprobs: [N] fp32, or None: the log-probs before this step's first update are those
            of this very forward (a step of one mini-batch), so that r = 1.
        advantages, reference_logprobs, importance: [N] fp32.
    """
    old = log_prob.detach() if old_logprobs is None else old_logprobs
    ratio = torch.exp(log_prob - old)
    bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    unclipped_loss, bounded_loss = -ratio * advantages, -bounded * advantages
    loss = torch.maximum(unclipped_loss, bounded_loss)
    clipped = bounded_loss > unclipped_loss
    if settings.dual_clip is not None:
        ceiling = -settings.dual_clip * advantages
        cut = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(cut, ceiling, loss), clipped | cut
    if importance is not None:
        loss = loss * importance
    kl = None
    if reference_logprobs is not None:
        difference = reference_logprobs - log_prob
        kl = torch.exp(difference) - difference - 1
        loss = loss + settings.kl_coefficient * kl
    return PolicyLoss(loss, clipped, kl.detach() if kl is not None else None)
