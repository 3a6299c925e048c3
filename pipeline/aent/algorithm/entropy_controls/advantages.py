"""Entropy controls that change advantages."""

from __future__ import annotations

from dataclasses import replace

import torch

from aent.algorithm.entropy_controls.base import Context, Effect, over_response
from aent.algorithm.terms import LossTerms
from aent.recipe.controls import AdvantageClip, EntropyAdvantage, ResponseEntropyAdvantage


def entropy_advantage(terms: LossTerms, settings: EntropyAdvantage, context: Context) -> Effect:
    """A + min(scale * H, abs(A) / limit) per token (arXiv 2506.14758): more for uncertain tokens,
    never enough to turn a sign.

    Certainty: from a secondary note and public code; whose H, the old policy's or that in training,
    is our choice (old). The paper's scale is .4 with GRPO and .1 with PPO, its limit 2.
    """
    advantages = terms.advantages[context.batch.loss_mask]
    bonus = torch.minimum(settings.scale * context.entropies, advantages.abs() / settings.limit)
    return Effect(replace(terms, advantages=over_response(context.batch, advantages + bonus)))


def response_entropy_advantage(
    terms: LossTerms, _settings: ResponseEntropyAdvantage, context: Context
) -> Effect:
    """ETTRL's EAR (arXiv 2508.11356): A * max(0, 1 + (mean H of the group - H_i) / mean H of the
    group), H_i the mean entropy of response i: less for a response that was uncertain.

    Certainty: EAR-style. The rule is from a secondary note; the bound at 0, without which a very
    uncertain response would learn the opposite, is ours; so is the mean of the group as that of its
    responses' means.
    """
    batch = context.batch
    owner = batch.sequence_of_token[batch.loss_mask]
    total = torch.zeros(batch.num_sequences).index_add(0, owner, context.entropies)
    entropy = total / batch.response_lengths
    _, group = torch.unique(batch.group, return_inverse=True)
    sums = torch.zeros(int(group.max()) + 1).index_add(0, group, entropy)
    mean = (sums / torch.bincount(group))[group]
    factor = torch.where(mean > 0, 1 + (mean - entropy) / mean, 1.0).clamp(min=0)
    return Effect(replace(terms, advantages=terms.advantages * factor[batch.sequence_of_token]))


def advantage_clip(terms: LossTerms, settings: AdvantageClip, _: Context) -> Effect:
    """ETTRL's other reshaping (arXiv 2508.11356): clip(A, -bound, bound), so that no rare answer
    pulls harder than that.

    Certainty: EAR-style; the rule and its bound, 2, are from a secondary note. Which of the two the
    paper's results have was not found; a recipe may ask for both.
    """
    bounded = terms.advantages.clamp(-settings.bound, settings.bound)
    return Effect(replace(terms, advantages=bounded))
