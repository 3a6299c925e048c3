"""From rewarded samples to mini-batches that carry everything their losses need."""

from __future__ import annotations

import torch
from torch import Tensor

from aent.algorithm import advantages, aggregation, importance, rewards
from aent.batch import Batch
from aent.recipe.schema import AlgorithmSection, Recipe

CORRECTIONS = {
    "truncated_token": importance.truncated_token,
    "masked_sequence": importance.masked_sequence,
}


def needs_old_logprobs(recipe: Recipe) -> bool:
    """Whether a step must score its batch first: later mini-batches, corrections and entropy
    controls need it."""
    several = recipe.trainer.mini_batches > 1
    return several or recipe.algorithm.importance != "none" or bool(recipe.entropy_controls)


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
    """[S] fp32: the advantage of each response, from its reward and penalty."""
    reward = batch.reward if batch.penalty is None else batch.reward + batch.penalty
    kind, lengths = settings.advantage, batch.response_lengths
    if kind == "leave_one_out":
        return advantages.leave_one_out(reward, batch.group)
    if kind in ("group_normalized", "group_mean"):
        return advantages.group_advantages(reward, batch.group, kind == "group_normalized")
    baseline = kind == "reinforce_plus_plus_baseline"
    return advantages.batch_normalized(reward, batch.group, lengths, baseline)


def split_mini_batches(batch: Batch, recipe: Recipe) -> list[Batch]:
    """Mini-batches of whole groups, in order, each with its own weights per token."""
    mini_batches = []
    for chosen in mini_batch_sequences(batch, recipe.trainer.mini_batches):
        mini = batch.select(chosen)
        mini.policy_weight = policy_weight(mini, recipe)
        mini.entropy_weight = aggregation.token_mean(mini)
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
