"""Advantages from rewards, by group id: groups may be uneven and stand in any order."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # added to a group's standard deviation, as in verl


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
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1
    value = reward.double()  # a group of equal rewards must come out as exactly 0
    count = torch.zeros(groups, dtype=torch.float64).index_add(0, index, torch.ones_like(value))
    mean = torch.zeros(groups, dtype=torch.float64).index_add(0, index, value) / count
    centred = value - mean[index]
    if not normalize:
        return centred.float()
    square = torch.zeros(groups, dtype=torch.float64).index_add(0, index, centred**2)
    std = torch.sqrt(square / (count - 1).clamp(min=1))
    return (centred / (std[index] + EPSILON)).float()
