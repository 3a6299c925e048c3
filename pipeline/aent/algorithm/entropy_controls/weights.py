"""Entropy controls that take tokens out of the policy loss, by a weight or by a gate."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from aent.algorithm.entropy_controls.base import Context, Effect, over_response
from aent.algorithm.entropy_controls.terms import covariance
from aent.algorithm.terms import EntropyGate, LossTerms
from aent.recipe.controls import (
    ClipCov,
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
    each response. The mean's denominator keeps counting every token (TRL).
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
    """
    cov = covariance(terms, context)
    candidates = ((cov > settings.low) & (cov < settings.high)).nonzero()[:, 0]
    count = max(1, int(settings.share * cov.numel()))
    order = torch.randperm(candidates.numel(), generator=context.generator())
    kept = torch.ones(cov.numel())
    kept[candidates[order[:count]]] = 0
    return Effect(terms.weighed(over_response(context.batch, kept)))


def entropy_ratio_clip(terms: LossTerms, settings: EntropyRatioClip, context: Context) -> Effect:
    """ERC (arXiv 2512.05591): a token has no policy loss while its entropy, in the forward that is
    learnt from, is below 1 - low or above 1 + high times its old entropy.

    Certainty: ERC-style. The rule is from a secondary note, the bounds (1 +- .05) from memory; that
    it is a gate on the surrogate beside PPO's clip, and nothing else, is our reading.
    """
    old = over_response(context.batch, context.entropies)
    gate = EntropyGate((1 - settings.low) * old, (1 + settings.high) * old)
    return Effect(replace(terms, entropy_gate=gate))


def sample_switch(terms: LossTerms, settings: SampleSwitch, context: Context) -> Effect:
    """Entrocraft's sample switching (arXiv 2604.26326): while the step's mean entropy is above the
    band only tokens with A > 0 have a policy loss, while it is below only those with A < 0; inside
    all. Good samples sharpen the policy, bad ones flatten it. The band moves linearly over the run,
    to ``anneal_to`` times itself at the last step.

    Certainty: the rule is that of its public code (read); its bands go from .6 to .4 nats, or from
    .7 to .5. Those left out keep their place in the mean's denominator, as with every mask here.
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
    """[N] fp64: pi (log pi + H) of each response token, by the policy before the step's first
    update: minus the derivative of the entropy by the token's own logit, so what raising it takes
    from the entropy."""
    log_prob = context.scores.logprobs[context.batch.loss_mask].double()
    return log_prob.exp() * (log_prob + context.entropies.double())


def entropy_change_weight(
    terms: LossTerms, settings: EntropyChangeWeight, context: Context
) -> Effect:
    """STEER (arXiv 2510.10150): the surrogate times exp(-strength Omega), at least ``least``, with
    Omega = abs(A / pi_old pi (1 - pi) (log pi + H)), what the token's update would change the
    entropy by.

    Certainty: Omega and the range [.8, 1] as in its public code (read); its k was not found, 1 is
    ours. Here pi is the policy before the step's first update, so that A / pi_old pi = A.
    """
    mask = context.batch.loss_mask
    log_prob = context.scores.logprobs[mask].double()
    surprise = log_prob + context.entropies.double()
    omega = (terms.advantages[mask].double() * (1 - log_prob.exp()) * surprise).abs()
    weight = (-settings.strength * omega).exp().clamp(min=settings.least)
    return Effect(terms.weighed(over_response(context.batch, weight.float())))


def entropy_change_mask(terms: LossTerms, settings: EntropyChangeMask, context: Context) -> Effect:
    """Clip_B (arXiv 2602.03392): no policy loss for tokens whose S = pi (H + log pi) lies
    ``deviations`` standard deviations or more from its mean over the step's response tokens.

    Certainty: Clip_B-style. S is from a note; that an outlier is told by standard deviations, and
    by 3 of them, is ours.
    """
    change = entropy_change(context)
    apart = (change - change.mean()).abs()
    kept = apart < settings.deviations * change.std(correction=0)
    # without any spread nothing lies apart
    kept |= apart == 0
    return Effect(terms.weighed(over_response(context.batch, kept.float())))
