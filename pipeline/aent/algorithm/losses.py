"""Policy losses per token. How tokens are averaged is ``aggregation``'s business, not theirs.

One extreme token must not cost a mini-batch its update: a log-ratio is bounded before it is
exponentiated (``bound_log_ratio``), and a weight of 0 leaves a token out by ``where``, for 0 x inf
is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aent.recipe.schema import AlgorithmSection

MAX_LOG_RATIO = 20.0  # nats: e^20 is 5e8; fp32's exp overflows at 88


@dataclass
class PolicyLoss:
    """What the policy loss says of N response tokens."""

    loss: Tensor  # [N] fp32, differentiable
    # [N] bool: the clip (low, high or dual) has cut this token's gradient; CISPO: has bounded its
    # weight
    clipped: Tensor
    kl_reference: Tensor | None  # [N] fp32 (k3 estimate), None without a reference


def policy_loss(
    log_prob: Tensor, fields: Mapping[str, Tensor], settings: AlgorithmSection
) -> PolicyLoss:
    """The surrogate that the recipe names, with its options, per token.

    - the surrogate (``ppo_clip``, ``gspo``, ``cispo``: see ``clipped_surrogate``, ``cispo``)
    - importance: a detached factor on the surrogate (engine-versus-trainer mismatch, masks)
    - ERC: no surrogate where the entropy is below entropy_low or above entropy_high
      (``entropy_controls.weights.entropy_ratio_clip``)
    - EntroPIC: - ratio_weight * pi / pi_old (``entropy_controls.terms.probability_push``)
    - KL-Cov: + old_kl_weight * abs(log pi - log pi_old) (``entropy_controls.terms.kl_cov``)
    - KL to a frozen reference: + kl_weight (default kl_coefficient) * (e^d - d - 1), with
      d = log pi_ref - log pi (GRPO, arXiv 2402.03300 eq. 4; Schulman's k3 estimate)

    Args:
        log_prob: [N] fp32, differentiable: tempered log-probs of the policy in training.
        fields: [N] fp32 each, of the same tokens: ``advantages``, and where there are any
            ``old_logprobs`` (without them those before this step's first update are those of this
            very forward, a step of one mini-batch, so that r = 1), ``sequence_log_ratio`` (gspo
            with old log-probs: see there), ``importance``, ``entropy_low`` and ``entropy_high``
            (with ``entropy``, detached: of the policy in training), ``ratio_weight``,
            ``old_kl_weight`` (with old log-probs), ``reference_logprobs``, ``kl_weight``.
    """
    advantages, old = fields["advantages"], fields.get("old_logprobs")
    kept = _kept(fields)
    if settings.policy_loss == "gspo" and old is not None:
        log_ratio = log_prob - log_prob.detach() + fields["sequence_log_ratio"]
    else:
        log_ratio = log_prob - (log_prob.detach() if old is None else old)
    if kept is not None:  # without a gradient, and a number in any case
        log_ratio = torch.where(kept, log_ratio, log_ratio.detach().nan_to_num())
    if settings.policy_loss == "cispo":
        loss, clipped = cispo(log_prob, log_ratio, advantages, settings)
    else:
        loss, clipped = clipped_surrogate(log_ratio, advantages, settings)
    if "importance" in fields:
        loss = loss * fields["importance"]
    if kept is not None:
        loss = torch.where(kept, loss, 0.0)
    if "entropy_low" in fields:
        clipped = clipped | ~_inside(fields)
    if "ratio_weight" in fields:
        before, weight = log_prob.detach() if old is None else old, fields["ratio_weight"]
        loss = loss - weight * torch.exp(
            bound_log_ratio(torch.where(weight != 0, log_prob - before, 0.0))
        )
    if "old_kl_weight" in fields:
        weight = fields["old_kl_weight"]
        change = torch.where(weight != 0, log_prob - fields["old_logprobs"], 0.0)
        loss = loss + weight * change.abs()
    kl = None
    if "reference_logprobs" in fields:
        difference = bound_log_ratio(fields["reference_logprobs"] - log_prob)
        kl = torch.exp(difference) - difference - 1
        loss = loss + fields.get("kl_weight", settings.kl_coefficient) * kl
    return PolicyLoss(loss, clipped, kl.detach() if kl is not None else None)


def bound_log_ratio(log_ratio: Tensor) -> Tensor:
    """At most ``MAX_LOG_RATIO``, for what is exponentiated: beyond it a token has a finite loss and
    no gradient. Below it nothing changes, to the last bit."""
    return log_ratio.clamp(max=MAX_LOG_RATIO)


def _inside(fields: Mapping[str, Tensor]) -> Tensor:
    """[N] bool: whose entropy lies within the bounds of ERC."""
    entropy, low, high = (fields[n] for n in ("entropy", "entropy_low", "entropy_high"))
    return (entropy >= low) & (entropy <= high)


def _kept(fields: Mapping[str, Tensor]) -> Tensor | None:
    """[N] bool: which tokens have a surrogate; None: all."""
    kept = fields["importance"] != 0 if "importance" in fields else None
    if "entropy_low" in fields:
        kept = _inside(fields) if kept is None else kept & _inside(fields)
    return kept


def entropy_bonus(entropy: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
    """[N]: what the coefficient multiplies: the entropy, less EPO's smoothing where it is asked
    for, smoothing_weight * ([smoothing_low - H]+ + [H - smoothing_high]+)
    (``entropy_controls.coefficient.entropy_smoothing``)."""
    if "smoothing_weight" not in fields:
        return entropy
    low, high = fields["smoothing_low"], fields["smoothing_high"]
    outside = torch.relu(low - entropy) + torch.relu(entropy - high)
    return entropy - fields["smoothing_weight"] * outside


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, settings: AlgorithmSection
) -> tuple[Tensor, Tensor]:
    """(loss, clipped) of PPO's clip.

    - with r = pi / pi_old: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv
      1707.06347 eq. 7; asymmetric bounds: DAPO, arXiv 2503.14476 eq. 10)
    - dual clip, only where A < 0: at most -dual_clip * A (arXiv 1912.09729 eq. 5)
    """
    ratio = torch.exp(bound_log_ratio(log_ratio))
    bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    unclipped_loss, bounded_loss = -ratio * advantages, -bounded * advantages
    loss = torch.maximum(unclipped_loss, bounded_loss)
    clipped = bounded_loss > unclipped_loss
    if settings.dual_clip is not None:
        ceiling = -settings.dual_clip * advantages
        cut = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(cut, ceiling, loss), clipped | cut
    return loss, clipped


def cispo(
    log_prob: Tensor, log_ratio: Tensor, advantages: Tensor, settings: AlgorithmSection
) -> tuple[Tensor, Tensor]:
    """(loss, clipped) of CISPO: -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi (MiniMax-M1,
    arXiv 2506.13585 eq. 4 and 5): the weight is clipped, and no token loses its gradient.

    The paper sets no lower bound (``clip_low: 1``). The bounds are differences from 1, as in the
    paper, verl and slime; TRL's epsilon_high is the bound itself, and its lower one is not used.
    """
    ratio = torch.exp(bound_log_ratio(log_ratio.detach()))
    weight = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return -weight * advantages * log_prob, weight != ratio


def sequence_log_ratio(log_prob: Tensor, old_logprobs: Tensor, sequence: Tensor) -> Tensor:
    """Log of GSPO's sequence ratio, the geometric mean of a response's token ratios
    (pi(y) / pi_old(y))^(1 / |y|) (arXiv 2507.18071 eq. 7), at each of its tokens, detached.

    ``policy_loss`` gives it the gradient of the token's own log-prob, sg[s] pi / sg[pi] (the
    paper's GSPO-token, eq. 14, as in verl): the same loss and gradient as GSPO's own where all
    tokens of a response have one advantage, and right too where they do not.

    Args:
        log_prob, old_logprobs: [N] fp32. All tokens of a response must be among them.
        sequence: [N] int64 in [0, N): which response each token belongs to.

    Returns:
        [N] fp32.
    """
    difference = log_prob.detach().double() - old_logprobs.double()
    total = torch.zeros_like(difference).index_add(0, sequence, difference)
    count = torch.zeros_like(difference).index_add(0, sequence, torch.ones_like(difference))
    return (total[sequence] / count[sequence]).float()
