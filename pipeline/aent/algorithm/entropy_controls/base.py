"""What entropy controls are made of: the entry of the registry, what it may ask for, helpers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from aent.algorithm.entropy_controls.plan import Plan
from aent.data.batch import Batch
from aent.recipe.schema import Recipe

Kept = dict[str, Any]  # what one control remembers: numbers, text and dicts of them, as JSON has
Memory = dict[str, Kept]  # by kind; part of a checkpoint

Needed = Literal[
    "old_entropies", "old_logprobs", "old_nucleus_entropies", "reference_logprobs", "item"
]


@dataclass(frozen=True)
class Control:
    """One control of the registry: a change of the step's rollouts, or of its batch, or both."""

    needs: Needed | None = None  # a field of the batch, by the scoring pass or from the samples
    # before sampling: (plan, settings, what it kept of the steps before) -> plan
    plan: Callable[[Plan, Any, Kept], Plan] | None = None
    # after scoring: changes the batch, returns what it keeps for the next step
    apply: Callable[[Batch, Any, Context], Kept | None] | None = None


@dataclass(frozen=True)
class Context:
    """What a control may ask for besides the batch and its own settings."""

    recipe: Recipe
    step: int
    vocab_size: int
    kept: Kept  # by this control, of the step before; empty at first

    def generator(self) -> torch.Generator:
        """For what is drawn at random: the same on every rank, and when the step is executed
        again."""
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)


def old_entropies(batch: Batch) -> Tensor:
    """[N] fp32: of the response tokens, nats."""
    assert batch.old_entropies is not None
    return batch.old_entropies[batch.loss_mask]


def mean_entropy(batch: Batch) -> float:
    """Mean old entropy of the step's response tokens, nats; of those that the policy sampled at
    the step's own temperature."""
    assert batch.old_entropies is not None
    return float(batch.old_entropies[batch.own_tokens].double().mean())


def weigh(batch: Batch, factor: Tensor) -> None:
    """Multiply the surrogate of each response token by ``factor`` [N]."""
    before = 1.0 if batch.importance is None else batch.importance
    batch.importance = over_response(batch, factor.float()) * before


def over_response(batch: Batch, values: Tensor) -> Tensor:
    """[T] fp32: ``values`` [N] at the response tokens, 0 elsewhere."""
    flat = torch.zeros(batch.tokens.numel())
    flat[batch.loss_mask] = values
    return flat
