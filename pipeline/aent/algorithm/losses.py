"""Policy losses per token. ``aggregation`` averages over tokens.

One extreme token must not spoil a mini-batch's update. So a log-ratio is bounded before it is
exponentiated (``bound_log_ratio``), and a weight of 0 removes a token by ``where``, because 0 x inf
is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aent.algorithm.terms import ClippedGradient, EntropyGate, LossTerms, Smoothing
from aent.data.flat import Flat, PerToken
from aent.recipe.training import AlgorithmSection

MAX_LOG_RATIO = 20.0  # nats: e^20 is 5e8; fp32's exp overflows at 88


@dataclass
class PolicyLoss:
    """The policy loss of N response tokens."""

    loss: Tensor  # [N] fp32, differentiable
    # [N] bool: the clip (low, high or dual) has cut this token's gradient; CISPO: has bounded its
    # weight
    clipped: Tensor
    kl_reference: Tensor | None  # [N] fp32 (k3 estimate), None without a reference


@dataclass(frozen=True)
class InTraining(Flat):
    """Results of the forward pass that is trained on, for N response tokens, besides their
    log-probs; without gradient."""

    entropy: PerToken  # [N] fp32, nats, over the whole vocabulary
    sequence_log_ratio: PerToken | None = None  # [N] fp32, for gspo with old log-probs


def policy_loss(
    log_prob: Tensor, now: InTraining, terms: LossTerms, settings: AlgorithmSection
) -> PolicyLoss:
    """The recipe's surrogate, plus the terms added to it, per token.

    - the surrogate (``ppo_clip``, ``gspo``, ``cispo``: see ``clipped_surrogate``, ``cispo``)
    - REPO-R: advantages times max(0, 1 - zeta sign(A) log pi), log pi without gradient
      (``actuators.advantage_zeta``)
    - ``surrogate_factor``: a factor on it, without gradient (off-policy correction, token weight)
    - ERC: no surrogate if the entropy is outside ``entropy_gate``
      (``entropy_controls.weights.entropy_ratio_clip``)
    - EntroPIC: - ratio_weight * pi / pi_old (``entropy_controls.terms.probability_push``)
    - KL-Cov: + old_kl_weight * abs(log pi - log pi_old) (``entropy_controls.terms.kl_cov``)
    - KL to a frozen reference: + reference.weight * (e^d - d - 1), with d = log pi_ref - log pi
      (GRPO, arXiv 2402.03300 eq. 4; Schulman's k3 estimate)

    Args:
        log_prob: [N] fp32, differentiable: tempered log-probs of the policy in training.
        now, terms: of the same tokens.
    """
    before = log_prob.detach() if terms.old_logprobs is None else terms.old_logprobs
    factor, kept = terms.surrogate_factor, _kept(now, terms)
    if settings.policy_loss == "gspo" and terms.old_logprobs is not None:
        assert now.sequence_log_ratio is not None, "gspo needs the ratios of whole responses"
        log_ratio = log_prob - log_prob.detach() + now.sequence_log_ratio
    else:
        log_ratio = log_prob - before
    if kept is not None:  # without gradient, and finite in any case
        log_ratio = torch.where(kept, log_ratio, log_ratio.detach().nan_to_num())
    advantages = terms.advantages
    if terms.zeta is not None:
        advantages = by_surprise(advantages, terms.zeta, log_prob.detach())
    if settings.policy_loss == "cispo":
        loss, clipped = cispo(log_prob, log_ratio, advantages, settings, terms.clip_high)
    else:
        loss, clipped = clipped_surrogate(
            log_ratio, advantages, settings, terms.clip_high, terms.clipped_gradient
        )
    if factor is not None:
        loss = loss * factor
    if kept is not None:
        loss = torch.where(kept, loss, 0.0)
    if terms.entropy_gate is not None:
        clipped = clipped | ~_inside(now, terms.entropy_gate)
    if terms.ratio_weight is not None:
        weight = terms.ratio_weight
        change = torch.where(weight != 0, log_prob - before, 0.0)
        loss = loss - weight * torch.exp(bound_log_ratio(change))
    if terms.old_kl_weight is not None:
        weight = terms.old_kl_weight
        loss = loss + weight * torch.where(weight != 0, log_prob - before, 0.0).abs()
    kl = None
    if terms.reference is not None:
        difference = bound_log_ratio(terms.reference.logprobs - log_prob)
        kl = torch.exp(difference) - difference - 1
        loss = loss + terms.reference.weight * kl
    return PolicyLoss(loss, clipped, kl.detach() if kl is not None else None)


def by_surprise(advantages: Tensor, zeta: Tensor, log_prob: Tensor) -> Tensor:
    """A max(0, 1 - zeta sign(A) log pi), REPO-R's advantages (``actuators.advantage_zeta``)."""
    surprise = torch.where(zeta != 0, zeta * log_prob, 0.0)
    return advantages * (1 - advantages.sign() * surprise).clamp(min=0)


def bound_log_ratio(log_ratio: Tensor) -> Tensor:
    """Bound a log-ratio by ``MAX_LOG_RATIO`` before it is exponentiated: beyond it a token has a
    finite loss and no gradient. Below it nothing changes, bit for bit."""
    return log_ratio.clamp(max=MAX_LOG_RATIO)


def _inside(now: InTraining, gate: EntropyGate) -> Tensor:
    """[N] bool: tokens whose entropy lies within the bounds of ERC."""
    return (now.entropy >= gate.low) & (now.entropy <= gate.high)


def _kept(now: InTraining, terms: LossTerms) -> Tensor | None:
    """[N] bool: which tokens have a surrogate; None: all."""
    factor = terms.surrogate_factor
    kept = None if factor is None else factor != 0
    if terms.entropy_gate is not None:
        inside = _inside(now, terms.entropy_gate)
        kept = inside if kept is None else kept & inside
    return kept


def entropy_bonus(entropy: Tensor, smoothing: Smoothing | None) -> Tensor:
    """[N]: what the coefficient multiplies: the entropy, minus EPO's smoothing if requested,
    weight * ([low - H]+ + [H - high]+) (``entropy_controls.coefficient.entropy_smoothing``).
    """
    if smoothing is None:
        return entropy
    outside = torch.relu(smoothing.low - entropy) + torch.relu(entropy - smoothing.high)
    return entropy - smoothing.weight * outside


def clipped_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    settings: AlgorithmSection,
    clip_high: Tensor | None = None,
    clipped_gradient: ClippedGradient | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, clipped) of PPO's clip.

    - with r = pi / pi_old: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv
      1707.06347 eq. 7; asymmetric bounds: DAPO, arXiv 2503.14476 eq. 10)
    - clipped_gradient: a clipped token has -share * bound / sg(r) * r A instead
      (``entropy_controls.terms.kept_gradient``)
    - dual clip, only where A < 0: at most -dual_clip * A (arXiv 1912.09729 eq. 5)

    clip_high: [N] fp32, replaces the recipe's.
    """
    ratio = torch.exp(bound_log_ratio(log_ratio))
    bounded = _bounded(ratio, settings, clip_high)
    unclipped_loss, bounded_loss = -ratio * advantages, -bounded * advantages
    loss = torch.maximum(unclipped_loss, bounded_loss)
    clipped = bounded_loss > unclipped_loss
    if clipped_gradient is not None:
        share = torch.where(advantages > 0, clipped_gradient.high, clipped_gradient.low)
        at_bound = share * bounded_loss.detach() * torch.exp(log_ratio - log_ratio.detach())
        loss = torch.where(clipped, at_bound, loss)
    if settings.dual_clip is not None:
        ceiling = -settings.dual_clip * advantages
        cut = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(cut, ceiling, loss), clipped | cut
    return loss, clipped


def _bounded(ratio: Tensor, settings: AlgorithmSection, clip_high: Tensor | None) -> Tensor:
    """[N]: the ratio between its bounds."""
    if clip_high is None:
        return ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return torch.minimum(ratio.clamp(min=1 - settings.clip_low), 1 + clip_high)


def cispo(
    log_prob: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    settings: AlgorithmSection,
    clip_high: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, clipped) of CISPO: -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi (MiniMax-M1,
    arXiv 2506.13585 eq. 4 and 5): the weight is clipped, and no token loses its gradient.

    The paper sets no lower bound (``clip_low: 1``). The bounds are differences from 1, as in the
    paper, verl and slime; TRL's epsilon_high is the bound itself, and its lower one is not used.
    """
    ratio = torch.exp(bound_log_ratio(log_ratio.detach()))
    weight = _bounded(ratio, settings, clip_high)
    return -weight * advantages * log_prob, weight != ratio


def sequence_log_ratio(
    log_prob: Tensor,
    old_logprobs: Tensor,
    sequence: Tensor,
    tokens: Tensor,
    add_up: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Log of GSPO's sequence ratio, the geometric mean of a response's token ratios
    (pi(y) / pi_old(y))^(1 / |y|) (arXiv 2507.18071 eq. 7), at each of its tokens, detached.

    ``policy_loss`` gives it the gradient of the token's own log-prob, sg[s] pi / sg[pi] (the
    paper's GSPO-token, eq. 14, as in verl). The loss and gradient are GSPO's own if all tokens of a
    response have the same advantage, and are right too if they do not.

    Args:
        log_prob, old_logprobs: [N] fp32. All tokens of a response must be among them, or among
            those of other ranks.
        sequence: [N] int64 in [0, R): which response each token belongs to.
        tokens: [R] int64: of each response, on all ranks.
        add_up: sums [R] float64 over the ranks that have tokens of these responses, in place.

    Returns:
        [N] fp32.
    """
    difference = log_prob.detach().double() - old_logprobs.double()
    total = difference.new_zeros(len(tokens)).index_add(0, sequence, difference)
    if add_up is not None:
        add_up(total)
    return (total / tokens)[sequence].float()
