"""Checks of the statistics' arguments, with one sentence naming the argument."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aent.entropy.paper import PAPER_DROP_FRACTION

IGNORED, INVALID = -1, -2  # in place of a target id


def check_arguments(
    logits: Tensor, targets: Tensor, temperature: float, name: str = "logits"
) -> None:
    """Raise as ``token_statistics`` does; ``name``: what the caller calls its first argument."""
    check_logits(logits, temperature, name)
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 token ids, not {targets.dtype}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, but {name} of shape {tuple(logits.shape)}"
            f" need {tuple(logits.shape[:-1])}"
        )


def check_logits(logits: Tensor, temperature: float, name: str = "logits") -> None:
    """The checks of ``check_arguments`` that need no targets."""
    if logits.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{name} must be fp16, bf16, fp32 or float64, not {logits.dtype}")
    if logits.dim() == 0:
        raise ValueError(f"{name} must have the shape [..., columns], not ()")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}, but must be finite and above 0")


def check_softcap(softcap: float | None) -> None:
    """Raise ValueError if it is not a valid bound."""
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"softcap is {softcap}, but must be finite and above 0")


def kept_count(drop_fraction: float | None, top_k: int | None, vocab_size: int) -> int:
    """Return K; it is V if nothing is clamped."""
    if top_k is None:
        if drop_fraction is None:
            return vocab_size
        if not 0 <= drop_fraction < 1:
            raise ValueError(f"drop_fraction is {drop_fraction}, but must be in [0, 1)")
        return vocab_size - int(vocab_size * drop_fraction)
    if drop_fraction is not None and drop_fraction is not PAPER_DROP_FRACTION:
        raise ValueError("drop_fraction and top_k are both given: give one of them")
    if not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k is {top_k}, but must be in [1, {vocab_size}]")
    return top_k


def checked_targets(targets: Tensor, vocab_size: int, ignore_index: int | None) -> Tensor:
    """[N] int64: the targets, with ``IGNORED`` and ``INVALID`` in place of ids without a token."""
    inside = (targets >= 0) & (targets < vocab_size)
    ids = torch.where(inside, targets, INVALID)
    return ids if ignore_index is None else ids.masked_fill(targets == ignore_index, IGNORED)


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backward refuse create_graph=True. (torch's once_differentiable silently drops the
    graph if the upstream gradient needs none.)"""

    @functools.wraps(backward)
    def checked(ctx: Any, *upstream: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("token statistics have no second derivatives: create_graph=True")
        return backward(ctx, *upstream)

    return checked
