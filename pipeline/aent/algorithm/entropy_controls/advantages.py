"""Entropy controls that change advantages."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from aent.algorithm.entropy_controls.base import Context, Effect, over_response
from aent.algorithm.terms import LossTerms
from aent.recipe.controls.advantages import (
    AdvantageClip,
    EntropyAdvantage,
    QuantileBaseline,
    ResponseEntropyAdvantage,
    SurpriseBoost,
)


def entropy_advantage(terms: LossTerms, settings: EntropyAdvantage, context: Context) -> Effect:
    """A + min(scale * H, abs(A) / limit) per token (arXiv 2506.14758): more for uncertain tokens,
    but never enough to change a sign.

    Certainty: from a secondary note and public code; taking the old policy's H rather than that in
    training is our choice. The paper's scale is 0.4 with GRPO and 0.1 with PPO, its limit 2.
    """
    advantages = terms.advantages[context.batch.loss_mask]
    bonus = torch.minimum(settings.scale * context.entropies, advantages.abs() / settings.limit)
    return Effect(replace(terms, advantages=over_response(context.batch, advantages + bonus)))


def response_entropy_advantage(
    terms: LossTerms, _settings: ResponseEntropyAdvantage, context: Context
) -> Effect:
    """ETTRL's EAR (arXiv 2508.11356): A * max(0, 1 + (mean H of the group - H_i) / mean H of the
    group), H_i the mean entropy of response i: less for an uncertain response.

    Certainty: EAR-style. The rule is from a secondary note. Ours are the bound at 0, without which
    a very uncertain response would get the opposite sign, and the group's mean as the mean of its
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
    """ETTRL's other reshaping (arXiv 2508.11356): clip(A, -bound, bound), which limits the pull of
    rare answers.

    Certainty: EAR-style; the rule and its bound, 2, are from a secondary note. We did not find
    which of the two the paper's results use; a recipe may use both.
    """
    bounded = terms.advantages.clamp(-settings.bound, settings.bound)
    return Effect(replace(terms, advantages=bounded))


def surprise_boost(terms: LossTerms, settings: SurpriseBoost, context: Context) -> Effect:
    """STARE (arXiv 2606.19236): while the step's mean entropy is below ``below``, A x ``positive``
    on the ``share`` of the tokens with A > 0 that were least likely (log pi_old), and A x
    ``negative`` on that share of those with A < 0.

    Certainty: STARE-style. Factors, share and threshold as in its public code (read); the second
    factor is a variant there (0.9). That the share is of the tokens of one sign is our reading. Its
    adaptive factor (steps of 0.01, between 0.5 and 1.5) is not implemented.
    """
    entropy, mask = context.mean_entropy, context.batch.loss_mask
    advantages = terms.advantages[mask]
    if entropy < settings.below:
        factor, surprise = torch.ones_like(advantages), -context.scores.logprobs[mask]
        for chosen, value in (
            (_most(surprise, advantages > 0, settings.share), settings.positive),
            (_most(surprise, advantages < 0, settings.share), settings.negative),
        ):
            factor[chosen] = value
        advantages = advantages * factor
    changed = over_response(context.batch, advantages)
    return Effect(replace(terms, advantages=changed), {"entropy": entropy})


def _most(values: Tensor, among: Tensor, share: float) -> Tensor:
    """Indices of the largest ``share`` of the values [N] among those for which ``among`` [N] is
    true."""
    places = among.nonzero()[:, 0]
    return places[values[places].topk(math.ceil(share * len(places))).indices]


def quantile_baseline(terms: LossTerms, settings: QuantileBaseline, context: Context) -> Effect:
    """QAE (arXiv 2509.22611): the baseline of a response is the ``quantile`` Q_K of its group's
    rewards instead of their mean: (r - Q_K) / std instead of GRPO's (r - mean) / std. With rewards
    of 0 and 1, a group with a share of at most 1 - K right answers learns only from those, and any
    other group only from its wrong answers.

    Q_K is the least value that at least the share K of the rewards does not exceed. A group's
    advantages are its rewards, shifted and scaled, so A - Q_K(A) is exactly that advantage.

    Certainty: from a note, and the paper's text from memory; K = 0.4 is the paper's.
    """
    batch = context.batch
    first = (
        batch.cu_seqlens[1:] - 1
    )  # a response's last token; all of its tokens have the same advantage
    advantages = terms.advantages[first]
    baseline = torch.zeros_like(advantages)
    for group in batch.group.unique():
        members = ((batch.group == group) & batch.own).nonzero()[:, 0]
        if len(members):
            rank = math.ceil(settings.quantile * len(members))
            baseline[members] = advantages[members].kthvalue(rank).values
    shift = torch.where(batch.loss_mask, baseline[batch.sequence_of_token], 0.0)
    return Effect(replace(terms, advantages=terms.advantages - shift))
