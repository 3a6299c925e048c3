"""Entropy controls that take tokens out of the policy loss, by a weight or by a gate."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from aent.algorithm.entropy_controls.base import Context, Effect, over_response
from aent.algorithm.entropy_controls.terms import covariance
from aent.algorithm.terms import EntropyGate, LossTerms
from aent.recipe.controls import ClipCov, EntropyRatioClip, TopEntropyTokens


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
