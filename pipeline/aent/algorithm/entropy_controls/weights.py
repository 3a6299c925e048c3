"""Entropy controls that remove tokens from the policy loss, by a weight or by a gate."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from aent.algorithm.entropy_controls.base import Context, Effect, over_response
from aent.algorithm.entropy_controls.terms import covariance
from aent.algorithm.terms import EntropyGate, LossTerms
from aent.recipe.controls.weights import (
    ClipCov,
    EntropyBudget,
    EntropyChangeMask,
    EntropyChangeWeight,
    EntropyRatioClip,
    SampleSwitch,
    TopEntropyTokens,
)


def top_entropy_tokens(terms: LossTerms, settings: TopEntropyTokens, context: Context) -> Effect:
    """80/20 (arXiv 2506.01939): only the ``share`` of the step's response tokens with the highest
    entropy have a policy loss; ties at the threshold are kept.

    Certainty: the rule is the paper's; the quantile over the batch is from memory, TRL's
    top_entropy_quantile (read) takes it over the micro-batches of all ranks, one other copy within
    each response. The mean's denominator still counts every token (TRL).
    """
    entropies = context.entropies
    chosen = math.ceil(settings.share * entropies.numel())
    threshold = entropies.topk(chosen).values[-1]
    return Effect(terms.weighed(over_response(context.batch, (entropies >= threshold).float())))


def clip_cov(terms: LossTerms, settings: ClipCov, context: Context) -> Effect:
    """Clip-Cov (arXiv 2505.22617): tokens drawn from those with low < cov < high, ``share`` of all
    response tokens (at least one), have no policy loss.

    Certainty: as in verl (read), which takes the covariance within a micro-batch, from the
    log-probs in training, and leaves out tokens that PPO's clip has cut; old log-probs have none.
    ``exact``, which is ours: cov is what the token's own update takes from its entropy, - A
    <d log pi, dH> (``Context.covariances``), nats for a step of length 1 on its logits.
    """
    cov = covariance(terms, context)
    if settings.exact:
        cov = -terms.advantages[context.batch.loss_mask] * context.covariances
    candidates = ((cov > settings.low) & (cov < settings.high)).nonzero()[:, 0]
    count = max(1, int(settings.share * cov.numel()))
    order = torch.randperm(candidates.numel(), generator=context.generator())
    kept = torch.ones(cov.numel())
    kept[candidates[order[:count]]] = 0
    return Effect(terms.weighed(over_response(context.batch, kept)))


def entropy_ratio_clip(terms: LossTerms, settings: EntropyRatioClip, context: Context) -> Effect:
    """ERC (arXiv 2512.05591): a token has no policy loss while its entropy, in the forward pass
    that is trained on, is below 1 - low or above 1 + high times its old entropy.

    Certainty: ERC-style. The rule is from a secondary note, the bounds (1 +- 0.05) from memory.
    That it is only a gate on the surrogate beside PPO's clip is our reading.
    """
    old = over_response(context.batch, context.entropies)
    gate = EntropyGate((1 - settings.low) * old, (1 + settings.high) * old)
    return Effect(replace(terms, entropy_gate=gate))


def sample_switch(terms: LossTerms, settings: SampleSwitch, context: Context) -> Effect:
    """Entrocraft's sample switching (arXiv 2604.26326): while the step's mean entropy is above the
    band, only tokens with A > 0 have a policy loss; while it is below, only those with A < 0;
    inside the band, all. Good samples sharpen the policy, bad ones flatten it. The band moves
    linearly over the run, to ``anneal_to`` times its values at the last step.

    Certainty: the rule is that of its public code (read); its bands go from 0.6 to 0.4 nats, or
    from 0.7 to 0.5. Tokens without a loss still count in the mean's denominator, as with every mask
    here.
    """
    progress = context.step / max(1, context.recipe.steps - 1)
    factor = 1 + (settings.anneal_to - 1) * progress
    entropy, advantages = context.mean_entropy, terms.advantages
    kept = torch.ones_like(advantages, dtype=torch.bool)
    if entropy > factor * settings.high:
        kept = advantages > 0
    elif entropy < factor * settings.low:
        kept = advantages < 0
    weight = (kept & context.batch.loss_mask).float()
    return Effect(terms.weighed(weight), {"high": factor * settings.high, "entropy": entropy})


def entropy_change(context: Context) -> Tensor:
    """[N] fp64: pi (log pi + H) of each response token, under the policy before the step's first
    update. This is minus the derivative of the entropy with respect to the token's own logit: how
    much raising that logit lowers the entropy."""
    log_prob = context.scores.logprobs[context.batch.loss_mask].double()
    return log_prob.exp() * (log_prob + context.entropies.double())


def entropy_change_weight(
    terms: LossTerms, settings: EntropyChangeWeight, context: Context
) -> Effect:
    """STEER (arXiv 2510.10150): the surrogate times exp(-strength Omega), at least ``least``, with
    Omega = abs(A / pi_old pi (1 - pi) (log pi + H)), the change of the entropy by the token's
    update.

    Certainty: Omega and the range [0.8, 1] as in its public code (read); we did not find its k, 1
    is ours. Here pi is the policy before the step's first update, so that A / pi_old pi = A. That
    Omega uses only the token's own logit, and its ratio instead of its log-prob. With ``exact``,
    which is ours, Omega = abs(A <d log pi, dH>) over all logits (``Context.covariances``), about pi
    times as large.
    """
    mask = context.batch.loss_mask
    log_prob = context.scores.logprobs[mask].double()
    surprise = log_prob + context.entropies.double()
    slope = context.covariances if settings.exact else (1 - log_prob.exp()) * surprise
    omega = (terms.advantages[mask].double() * slope).abs()
    weight = (-settings.strength * omega).exp().clamp(min=settings.least)
    return Effect(terms.weighed(over_response(context.batch, weight.float())))


def entropy_change_mask(terms: LossTerms, settings: EntropyChangeMask, context: Context) -> Effect:
    """Clip_B (arXiv 2602.03392): no policy loss for tokens whose S = pi (H + log pi) lies
    ``deviations`` standard deviations or more from its mean over the step's response tokens.

    Certainty: Clip_B-style. S is from a note; defining outliers by 3 standard deviations is ours.
    With ``exact``, S minus its mean under the policy is used: the paper's first-order effect of a
    step on all of the token's logits (theorem 3.3, from a note): Clip_V-style.
    """
    change = -context.covariances if settings.exact else entropy_change(context)
    apart = (change - change.mean()).abs()
    kept = apart < settings.deviations * change.std(correction=0)
    # without any spread there are no outliers
    kept |= apart == 0
    return Effect(terms.weighed(over_response(context.batch, kept.float())))


def entropy_budget(terms: LossTerms, settings: EntropyBudget, context: Context) -> Effect:
    """The tokens whose update lowers the entropy may together lower it by at most ``spend`` times
    what the others raise it by. If it is more, one factor on their surrogates reduces it to that.

    A token's effect on the step's mean entropy is exact to first order, for a step of length 1
    along the policy loss's gradient on the logits under the old policy: (weight in the mean
    entropy) (weight in the policy loss) A <d log pi, dH>, divided by the number of mini-batches,
    whose weights each sum to 1. The sum over all tokens is what ``gradient/predicted_policy``
    estimates; the effect of a bonus of coefficient 1 is recorded too.

    Certainty: ours; no publication has it.
    """
    mask = context.batch.loss_mask
    assert context.scores.entropy_slopes is not None
    of_loss = terms.policy_weight[mask] * terms.advantages[mask]
    of_mean = terms.entropy_weight[mask].double()
    count = context.recipe.trainer.mini_batches
    change = of_mean * of_loss * context.covariances / count
    if terms.surrogate_factor is not None:
        change = change * terms.surrogate_factor[mask]
    raised, lowered = float(change.clamp(min=0).sum()), float(-change.clamp(max=0).sum())
    factor = min(1.0, settings.spend * raised / lowered) if lowered else 1.0
    weight = torch.where(change < 0, factor, 1.0).float()
    bonus = float((of_mean.square() * context.scores.entropy_slopes[mask]).sum()) / count
    kept = {"raised": raised, "lowered": lowered, "factor": factor, "bonus": bonus}
    return Effect(terms.weighed(over_response(context.batch, weight)), kept)
