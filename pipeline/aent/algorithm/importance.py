"""Corrections of the train-inference mismatch (TIS and MIS): a factor on each token's surrogate,
from ``logprobs`` [T] fp32, the trainer's before the step's first update."""

from __future__ import annotations

import torch
from torch import Tensor

from aent.algorithm.losses import bound_log_ratio
from aent.data.batch import Batch


def truncated_token(batch: Batch, logprobs: Tensor, cap: float) -> Tensor:
    """TIS: min(pi_trainer / pi_engine, cap) per token (truncated importance sampling, IMPALA arXiv
    1802.01561; for the mismatch of engines: Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training").

    Returns:
        [T] fp32, 0 off the loss mask.
    """
    ratio = torch.exp(bound_log_ratio(logprobs - batch.behaviour_logprobs)).clamp(max=cap)
    return torch.where(batch.loss_mask, ratio, 0.0)


def masked_sequence(batch: Batch, logprobs: Tensor, cap: float) -> Tensor:
    """MIS: 1 on the tokens of responses whose geometric-mean ratio pi_trainer / pi_engine lies in
    [1 / cap, cap], else 0: the whole response is masked (masked importance sampling).

    Returns:
        [T] fp32, 0 off the loss mask.
    """
    gap = torch.where(batch.loss_mask, logprobs - batch.behaviour_logprobs, 0.0)
    owner = batch.sequence_of_token
    total = torch.zeros(batch.num_sequences, dtype=torch.float64).index_add(0, owner, gap.double())
    mean = total / batch.response_lengths
    kept = mean.abs() <= torch.log(torch.tensor(cap, dtype=torch.float64))
    return (batch.loss_mask & kept[owner]).float()
