"""Gradients that a backward adds to Megatron's buffer by itself, while DDP waits for each one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def reduce_early(parameters: Iterable[Tensor]) -> None:
    """Say that DDP reduces these parameters' gradients as they come (overlap_grad_reduce)."""
    for parameter in parameters:
        parameter.reduced_early = True  # type: ignore[attr-defined]


def written(weight: Tensor) -> Tensor | None:
    """What a backward returns for a weight whose gradient it has added to ``weight.main_grad``.

    None, unless DDP reduces it early: its hook runs only if autograd has a gradient. Then it is one
    that the hook ignores (``grad_added_to_main_grad``) or, of embeddings tied to the output layer,
    zeros, to which the other use may add (``zero_out_wgrad``): Megatron's own signs, as in its
    tensor_parallel/layers.py.
    """
    if not getattr(weight, "reduced_early", False):
        return None
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    if getattr(weight, "zero_out_wgrad", False):
        return torch.zeros_like(weight)
    return torch.empty_like(weight)
