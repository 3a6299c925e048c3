"""Advantages from rewards, by group id: groups may be uneven and in any order."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # added to a group's standard deviation, as in verl
VARIANCE_EPSILON = 1e-8  # added to the batch's variance, as in verl and OpenRLHF


def group_advantages(reward: Tensor, group: Tensor, normalize: bool) -> Tensor:
    """Advantage of each response against the other responses to its prompt.

    - normalize: (r - mean) / (std + 1e-6), std with Bessel's correction (GRPO, arXiv 2402.03300
      section 4.1.2; the paper leaves the correction open, verl and TRL use it)
    - otherwise: r - mean (Dr. GRPO, arXiv 2503.20783 section 3.2)

    A group of one response has advantage 0.

    Args:
        reward: [S] fp32. group: [S] int64.

    Returns:
        [S] fp32.
    """
    centred, count, index = _centred(reward, group)
    if not normalize:
        return centred.float()
    square = torch.zeros_like(count).index_add(0, index, centred**2)
    std = torch.sqrt(square / (count - 1).clamp(min=1))
    return (centred / (std[index] + EPSILON)).float()


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """r - mean reward of the *other* responses to the prompt (RLOO: Kool et al. 2019; for language
    models Ahmadian et al., arXiv 2402.14740), which is (r - mean) n / (n - 1).

    The paper's surrogate is the log-probability of the whole response; here, as in verl, the
    advantage goes with the recipe's per-token loss. At ratio 1 the gradients differ by the
    aggregation alone (``constant_length`` gives the paper's, up to a constant). TRL's RLOO takes
    the ratio of whole sequences.

    A group of one response has advantage 0, because there is nothing to compare it with (verl keeps
    its reward).

    Args:
        reward: [S] fp32. group: [S] int64.

    Returns:
        [S] fp32.
    """
    centred, count, index = _centred(reward, group)
    return (centred * (count / (count - 1).clamp(min=1))[index]).float()


def batch_normalized(reward: Tensor, group: Tensor, tokens: Tensor, group_baseline: bool) -> Tensor:
    """Rewards normalized over the step's whole batch (REINFORCE++, arXiv 2501.03262).

    - (r - mean) / sqrt(var + 1e-8) over all response tokens, so that a long response counts for
      more; var with Bessel's correction (verl and OpenRLHF; the paper's v9 indexes its mean and
      standard deviation by token too)
    - group_baseline: of r - mean of its group instead of r (the paper's variant with baseline)

    If the recipe has a KL to the reference, it stays a term of the loss; the paper's variant
    without a baseline subtracts it from each token's reward.

    Args:
        reward: [S] fp32. group: [S] int64. tokens: [S] int64, response tokens of each sequence.

    Returns:
        [S] fp32.
    """
    value = _centred(reward, group)[0] if group_baseline else reward.double()
    weight = tokens.double()
    centred = value - (weight * value).sum() / weight.sum()
    variance = (weight * centred**2).sum() / (weight.sum() - 1).clamp(min=1)
    return (centred / torch.sqrt(variance + VARIANCE_EPSILON)).float()


def _centred(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(r - mean of its group [S], responses per group [G], group's place in it [S]), in float64:
    a group of equal rewards must come out as exactly 0."""
    _, index = torch.unique(group, return_inverse=True)
    value = reward.double()
    zeros = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
    count = zeros.index_add(0, index, torch.ones_like(value))
    mean = zeros.index_add(0, index, value) / count
    return value - mean[index], count, index
