"""Builds the terms of the loss from a step's scored samples, and cuts the step into
mini-batches."""

from __future__ import annotations

import torch
from torch import Tensor

from aent.algorithm import advantages, aggregation, entropy_controls, importance, rewards
from aent.algorithm.terms import LossTerms, MiniBatch, ReferenceKl
from aent.data.batch import Batch
from aent.data.scores import Scores
from aent.recipe.schema import Recipe

CORRECTIONS = {
    "truncated_token": importance.truncated_token,
    "masked_sequence": importance.masked_sequence,
}


def needs_scores(recipe: Recipe) -> bool:
    """Whether the step must score its batch first, as later mini-batches, corrections and entropy
    controls require."""
    several = recipe.trainer.mini_batches > 1
    corrected = recipe.algorithm.importance != "none"
    return several or corrected or entropy_controls.need_scores(recipe)


def loss_terms(
    batch: Batch, scores: Scores | None, reference: Tensor | None, recipe: Recipe
) -> LossTerms:
    """The terms of the loss by the recipe's ``algorithm``, before any entropy control.

    Args:
        scores: None if the recipe needs none (``needs_scores``).
        reference: [T] fp32, the reference's log-probs, if the recipe has a KL to it.
    """
    settings, mini_batches = recipe.algorithm, recipe.trainer.mini_batches
    per_sequence = sequence_advantages(batch, recipe)
    correction = kl = None
    if settings.importance != "none":
        assert scores is not None, "a correction needs the trainer's log-probs"
        correction = CORRECTIONS[settings.importance](
            batch, scores.logprobs, settings.importance_cap
        )
    if reference is not None:
        kl = ReferenceKl(reference, batch.loss_mask * settings.kl_coefficient)
    return LossTerms(
        advantages=torch.where(batch.loss_mask, per_sequence[batch.sequence_of_token], 0.0),
        policy_weight=aggregation.per_mini_batch(
            batch, mini_batches, lambda mini: policy_weight(mini, recipe)
        ),
        entropy_weight=aggregation.per_mini_batch(batch, mini_batches, aggregation.token_mean),
        old_logprobs=None if scores is None else scores.logprobs,
        correction=correction,
        reference=kl,
    )


def penalty(batch: Batch, recipe: Recipe) -> Tensor:
    """[S] fp32: the penalty added to each reward before advantages are computed."""
    settings = recipe.algorithm
    if not settings.overlong_buffer:
        return torch.zeros_like(batch.reward)
    return rewards.overlong_penalty(
        batch.response_lengths,
        recipe.rollout.max_response_tokens,
        settings.overlong_buffer,
        settings.overlong_penalty,
    )


def sequence_advantages(batch: Batch, recipe: Recipe) -> Tensor:
    """[S] fp32: the advantage of each response, from its reward and penalty. It is 0 for re-rolled
    responses, and others are not compared with them."""
    own, total = batch.own, torch.zeros(batch.num_sequences)
    reward = (batch.reward + penalty(batch, recipe))[own]
    kind, group = recipe.algorithm.advantage, batch.group[own]
    if kind == "leave_one_out":
        total[own] = advantages.leave_one_out(reward, group)
    elif kind in ("group_normalized", "group_mean"):
        total[own] = advantages.group_advantages(reward, group, kind == "group_normalized")
    else:
        baseline, lengths = kind == "reinforce_plus_plus_baseline", batch.response_lengths[own]
        total[own] = advantages.batch_normalized(reward, group, lengths, baseline)
    return total


def policy_weight(mini_batch: Batch, recipe: Recipe) -> Tensor:
    """[T] fp32: the weight of each token in the policy loss, by the recipe's aggregation."""
    kind = recipe.algorithm.aggregation
    if kind == "constant_length":
        return aggregation.constant_length(mini_batch, recipe.rollout.max_response_tokens)
    mean = aggregation.token_mean if kind == "token_mean" else aggregation.sequence_mean
    return mean(mini_batch)


def split(batch: Batch, terms: LossTerms, recipe: Recipe) -> list[MiniBatch]:
    """The step's mini-batches, in order; groups stay whole."""
    whole = MiniBatch(batch, terms)
    parts = aggregation.mini_batch_sequences(batch, recipe.trainer.mini_batches)
    return [whole.select(sequences) for sequences in parts]
