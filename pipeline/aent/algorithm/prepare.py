"""From rewarded samples to mini-batches that carry everything their losses need."""

from __future__ import annotations

import torch

from aent.algorithm import aggregation, importance
from aent.algorithm.advantages import group_advantages
from aent.batch import Batch
from aent.recipe.schema import AlgorithmSection

AGGREGATIONS = {
    "token_mean": aggregation.token_mean,
    "sequence_mean": aggregation.sequence_mean,
}
CORRECTIONS = {
    "truncated_token": importance.truncated_token,
    "masked_sequence": importance.masked_sequence,
}


def needs_old_logprobs(settings: AlgorithmSection, mini_batches: int) -> bool:
    """Whether a step must score its batch first: later mini-batches, and corrections, need it."""
    return mini_batches > 1 or settings.importance != "none"


def set_advantages(batch: Batch, settings: AlgorithmSection) -> None:
    """Fill ``advantages``, and ``importance`` where the recipe asks for it (old log-probs set)."""
    normalize = settings.advantage == "group_normalized"
    per_sequence = group_advantages(batch.reward, batch.group, normalize)
    batch.advantages = torch.where(batch.loss_mask, per_sequence[batch.sequence_of_token], 0.0)
    if settings.importance != "none":
        batch.importance = CORRECTIONS[settings.importance](batch, settings.importance_cap)


def split_mini_batches(batch: Batch, settings: AlgorithmSection, count: int) -> list[Batch]:
    """``count`` mini-batches of whole groups, in order, each with its own weights per token."""
    groups = torch.unique(batch.group)  # sorted
    mini_batches = []
    for part in torch.tensor_split(groups, count):
        chosen = torch.isin(batch.group, part).nonzero().flatten().tolist()
        mini = batch.select(chosen)
        mini.policy_weight = AGGREGATIONS[settings.aggregation](mini)
        mini.entropy_weight = aggregation.token_mean(mini)
        mini_batches.append(mini)
    return mini_batches
