"""Gradients that a backward adds to Megatron's buffer itself, while DDP waits for each gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def reduce_early(parameters: Iterable[Tensor]) -> None:
    """Mark that DDP reduces these parameters' gradients as they come (overlap_grad_reduce)."""
    for parameter in parameters:
        parameter.reduced_early = True  # type: ignore[attr-defined]


def written(weight: Tensor) -> Tensor | None:
    """The gradient that a backward returns for a weight if it has added it to ``weight.main_grad``.

    It is None, unless DDP reduces it early, because DDP's hook runs only if autograd has a
    gradient. Then it is a gradient that the hook ignores (``grad_added_to_main_grad``) or, for
    embeddings tied to the output layer, zeros to which the other use may add (``zero_out_wgrad``).
    These are Megatron's own flags, as in its tensor_parallel/layers.py.
    """
    if not getattr(weight, "reduced_early", False):
        return None
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    if getattr(weight, "zero_out_wgrad", False):
        return torch.zeros_like(weight)
    return torch.empty_like(weight)
