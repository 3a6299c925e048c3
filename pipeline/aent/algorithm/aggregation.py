"""The weight of each token in a mean over one optimizer mini-batch.

The weights of a mini-batch sum to 1 and are known before its first forward; a loss is then a plain
weighted sum, the same for any split into micro-batches and ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aent.batch import Batch


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
