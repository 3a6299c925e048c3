"""A scored step of a few responses, and the result of controls on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from aent.algorithm import aggregation, entropy_controls
from aent.algorithm.entropy_controls import Context, Memory
from aent.algorithm.entropy_controls.base import over_response
from aent.algorithm.terms import LossTerms
from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.data.scores import Scores
from aent.recipe.schema import Recipe


@dataclass(frozen=True)
class Step:
    batch: Batch
    scores: Scores | None
    terms: LossTerms

    def scored(self, **values: Sequence[float]) -> Step:
        """With these [N] for the scores of its response tokens."""
        assert self.scores is not None
        flat = {name: over_response(self.batch, torch.tensor(v)) for name, v in values.items()}
        return replace(self, scores=replace(self.scores, **flat))

    def with_terms(self, **terms: Any) -> Step:
        return replace(self, terms=replace(self.terms, **terms))

    def response(self, values: torch.Tensor) -> list[float]:
        """[N] of [T], which must be 0 elsewhere."""
        assert not values[~self.batch.loss_mask].any()
        return values[self.batch.loss_mask].tolist()


def samples(
    lengths: Sequence[int], groups: Sequence[int], rewards: Sequence[float]
) -> list[Sample]:
    return [
        Sample([5, 6], [1] * n, [-0.5] * n, [0] * n, "stop", g, g, r)
        for n, g, r in zip(lengths, groups, rewards)
    ]


def make_step(
    samples: Sequence[Sample], advantages: Sequence[float], g: torch.Generator, temperature: float
) -> Step:
    """These samples, scored by chance."""
    batch, n = Batch.from_samples(samples, temperature), len(advantages)
    scores = Scores(
        logprobs=over_response(batch, -3 * torch.rand(n, generator=g)),
        entropies=over_response(batch, 2 * torch.rand(n, generator=g)),
        nucleus_entropies=over_response(batch, torch.rand(n, generator=g)),
        covariances=over_response(batch, torch.rand(n, generator=g) - 0.5),
        entropy_slopes=over_response(batch, torch.rand(n, generator=g)),
    )
    terms = LossTerms(
        advantages=over_response(batch, torch.tensor(advantages)),
        policy_weight=aggregation.token_mean(batch),
        entropy_weight=aggregation.token_mean(batch),
        old_logprobs=scores.logprobs,
    )
    return Step(batch, scores, terms)


def recipe_of(*controls: dict, **sections: Any) -> Recipe:
    values = {
        "name": "x",
        "seed": 3,
        "steps": 10,
        "model": {"path": "none"},
        "controller": {"initial": 0.1},
        "algorithm": {"kl_coefficient": 0.6},
        "entropy_controls": controls,
    }
    return Recipe.model_validate(values | sections)


def controlled(
    step: Step, recipe: Recipe, number: int = 0, memory: Memory | None = None
) -> tuple[Step, Memory]:
    """The step after the recipe's controls, and what they keep, as a checkpoint has it."""
    context = Context(recipe, number, 100, step.batch, step.scores)
    terms, kept = entropy_controls.apply(step.terms, context, memory or {})
    return replace(step, terms=terms), json.loads(json.dumps(kept))


def steps_of(
    recipe: Recipe, count: int, make: Callable[[int, float], Step]
) -> list[tuple[Step, Memory]]:
    """Each step after its controls, and what they then keep. make: a step, from its number and the
    temperature that it is sampled at."""
    out: list[tuple[Step, Memory]] = []
    memory: Memory = {}
    for number in range(count):
        temperature = entropy_controls.plan(recipe, memory).temperature
        step, memory = controlled(make(number, temperature), recipe, number, memory)
        out.append((step, memory))
    return out
