"""From rewarded samples to mini-batches that carry everything their losses need."""

from __future__ import annotations

import torch
from torch import Tensor

from aent.algorithm import advantages, aggregation, entropy_controls, importance, rewards
from aent.data.batch import Batch
from aent.recipe.schema import AlgorithmSection, Recipe

CORRECTIONS = {
    "truncated_token": importance.truncated_token,
    "masked_sequence": importance.masked_sequence,
}


def needs_old_logprobs(recipe: Recipe) -> bool:
    """Whether a step must score its batch first: later mini-batches, corrections and entropy
    controls need it."""
    several = recipe.trainer.mini_batches > 1
    corrected = recipe.algorithm.importance != "none"
    return several or corrected or entropy_controls.need_scores(recipe)


def set_advantages(batch: Batch, recipe: Recipe) -> None:
    """Fill ``advantages``, and where the recipe asks for them ``penalty`` (before) and
    ``importance`` (old log-probs set)."""
    settings = recipe.algorithm
    if settings.overlong_buffer:
        batch.penalty = rewards.overlong_penalty(
            batch.response_lengths,
            recipe.rollout.max_response_tokens,
            settings.overlong_buffer,
            settings.overlong_penalty,
        )
    per_sequence = sequence_advantages(batch, settings)
    batch.advantages = torch.where(batch.loss_mask, per_sequence[batch.sequence_of_token], 0.0)
    if settings.importance != "none":
        batch.importance = CORRECTIONS[settings.importance](batch, settings.importance_cap)


def sequence_advantages(batch: Batch, settings: AlgorithmSection) -> Tensor:
    """[S] fp32: the advantage of each response, from its reward and penalty; 0 for re-rolled ones,
    with which nobody is compared."""
    own, total = batch.own, torch.zeros(batch.num_sequences)
    reward = (batch.reward if batch.penalty is None else batch.reward + batch.penalty)[own]
    kind, group = settings.advantage, batch.group[own]
    if kind == "leave_one_out":
        total[own] = advantages.leave_one_out(reward, group)
    elif kind in ("group_normalized", "group_mean"):
        total[own] = advantages.group_advantages(reward, group, kind == "group_normalized")
    else:
        baseline, lengths = kind == "reinforce_plus_plus_baseline", batch.response_lengths[own]
        total[own] = advantages.batch_normalized(reward, group, lengths, baseline)
    return total


def split_mini_batches(batch: Batch, recipe: Recipe) -> list[Batch]:
    """Mini-batches of whole groups, in order, each with its own weights per token."""
    mini_batches = []
    for chosen in mini_batch_sequences(batch, recipe.trainer.mini_batches):
        mini = batch.select(chosen)
        mini.policy_weight = policy_weight(mini, recipe)
        mini.entropy_weight = aggregation.token_mean(mini)
        if mini.entropy_factor is not None:
            mini.entropy_weight = mini.entropy_weight * mini.entropy_factor
        if mini.nucleus_weight is not None:
            mini.nucleus_weight = mini.nucleus_weight * aggregation.sequence_mean(mini)
        mini_batches.append(mini)
    return mini_batches


def policy_weight(mini_batch: Batch, recipe: Recipe) -> Tensor:
    """[T] fp32: the weight of each token in the policy loss, as the recipe aggregates."""
    kind = recipe.algorithm.aggregation
    if kind == "constant_length":
        return aggregation.constant_length(mini_batch, recipe.rollout.max_response_tokens)
    mean = aggregation.token_mean if kind == "token_mean" else aggregation.sequence_mean
    return mean(mini_batch)


def mini_batch_sequences(batch: Batch, count: int) -> list[list[int]]:
    """Which of the batch's sequences stand in each mini-batch, in their order there."""
    groups = torch.unique(batch.group)  # sorted
    return [
        torch.isin(batch.group, part).nonzero().flatten().tolist()
        for part in torch.tensor_split(groups, count)
    ]
