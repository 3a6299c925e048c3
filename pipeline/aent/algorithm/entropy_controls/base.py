"""The parts of entropy controls: a registry entry, its context, and helpers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from aent.algorithm.entropy_controls.plan import Plan
from aent.algorithm.terms import LossTerms
from aent.data.batch import Batch
from aent.data.scores import Scores
from aent.recipe.schema import Recipe

Need = Literal["scores", "nucleus_entropies", "covariances", "reference"]
Kept = dict[str, Any]  # one control's memory: numbers, text and dicts of them, as in JSON
Memory = dict[str, Kept]  # by kind; part of a checkpoint


@dataclass(frozen=True)
class Effect:
    """A control's result for one step."""

    terms: LossTerms  # of the step's loss from here on
    kept: Kept | None = None  # for the next step


@dataclass(frozen=True)
class Control:
    """One control of the registry: a change of the step's rollouts, or of its loss, or both."""

    needs: Need | None = None  # ``exact`` in its settings: covariances
    # before sampling: (plan, settings, its memory of earlier steps) -> plan
    plan: Callable[[Plan, Any, Kept], Plan] | None = None
    # after scoring: (terms so far, settings, context) -> its changed terms
    apply: Callable[[LossTerms, Any, Context], Effect] | None = None


@dataclass(frozen=True)
class Context:
    """What a control can use besides the terms and its own settings."""

    recipe: Recipe
    step: int
    vocab_size: int
    batch: Batch
    scored: Scores | None  # None if the step has not been scored
    kept: Kept = field(default_factory=dict)  # by this control, of the step before; empty at first

    @property
    def scores(self) -> Scores:
        """Of a control that needs them."""
        assert self.scored is not None
        return self.scored

    @property
    def entropies(self) -> Tensor:
        """[N] fp32: old entropies of the response tokens, nats."""
        return self.scores.entropies[self.batch.loss_mask]

    @property
    def covariances(self) -> Tensor:
        """[N] float64: the change of each response token's entropy if its logits take a step of
        length 1 along the gradient of its log-prob, under the old policy; exact to first order
        (``entropy.TokenStatistics.covariance``). For controls that need them."""
        assert self.scores.covariances is not None
        return self.scores.covariances[self.batch.loss_mask].double()

    @property
    def mean_entropy(self) -> float:
        """Mean old entropy, nats, of the response tokens that were sampled at the step's own
        temperature."""
        return float(self.scores.entropies[self.batch.own_tokens].double().mean())

    def generator(self) -> torch.Generator:
        """A random generator that is the same on every rank, and if the step is executed again."""
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)


def over_response(batch: Batch, values: Tensor) -> Tensor:
    """[T] fp32: ``values`` [N] at the response tokens, 0 elsewhere."""
    flat = torch.zeros(batch.tokens.numel())
    flat[batch.loss_mask] = values
    return flat
