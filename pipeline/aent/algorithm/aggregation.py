"""The weight of each token in a mean over one optimizer mini-batch.

The weights of a mini-batch are known before its first forward and, ``constant_length`` apart, sum
to 1; a loss is then a plain weighted sum, the same for any split into micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aent.data.batch import Batch


def mini_batch_sequences(batch: Batch, count: int) -> list[list[int]]:
    """The sequences of each of the step's ``count`` mini-batches, in their order there; groups stay
    whole."""
    groups = torch.unique(batch.group)  # sorted
    return [
        torch.isin(batch.group, part).nonzero().flatten().tolist()
        for part in torch.tensor_split(groups, count)
    ]


def per_mini_batch(batch: Batch, count: int, weights: Callable[[Batch], Tensor]) -> Tensor:
    """[T] fp32: ``weights`` of each of a step's mini-batches, at its tokens' indices in the
    step."""
    flat = torch.zeros(batch.tokens.numel())
    for sequences in mini_batch_sequences(batch, count):
        flat[batch.places(sequences)] = weights(batch.select(sequences))
    return flat


def token_mean(batch: Batch) -> Tensor:
    """Every response token of the mini-batch counts the same (DAPO, arXiv 2503.14476 eq. 12).

    Returns:
        [T] fp32, 0 off the loss mask.
    """
    return batch.loss_mask.float() / batch.loss_mask.sum()


def sequence_mean(batch: Batch) -> Tensor:
    """Mean over each response's tokens, then over responses (GRPO, arXiv 2402.03300 eq. 3).

    Returns:
        [T] fp32, 0 off the loss mask.
    """
    per_sequence = 1.0 / (batch.num_sequences * batch.response_lengths.double())
    return torch.where(batch.loss_mask, per_sequence[batch.sequence_of_token], 0.0).float()


def constant_length(batch: Batch, max_tokens: int) -> Tensor:
    """Sum over each response's tokens, divided by a constant, then the mean over responses
    (Dr. GRPO, arXiv 2503.20783 section 3.2: no length bias). The constant is the longest response
    that the recipe allows, as in the paper's code and TRL; it only scales the learning rate. verl
    calls it seq-mean-token-sum-norm.

    Returns:
        [T] fp32, 0 off the loss mask; the sum is mean length / max_tokens, not 1.
    """
    return batch.loss_mask.float() / (batch.num_sequences * max_tokens)
