"""The plan of a step's rollouts: what is requested from the engines besides the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reroll:
    """Prompts that are sampled again at another temperature (``rollouts.reroll``)."""

    share: float  # how many of the step's prompts: the first ones
    temperature: float
    limit: int  # how many of these responses are kept at most


@dataclass(frozen=True)
class Fork:
    """Trees instead of single responses (``rollouts.in_trees``)."""

    forks: int  # tokens of a response at which other responses branch off
    branches: int  # at each of them


@dataclass(frozen=True)
class Plan:
    """The recipe's rollouts for one step, after its entropy controls.

    temperature: of every request, and of the policy whose log-probs the trainer computes. samples:
    a function from prompts' items (indices of questions) to each one's number of responses. reward:
    a function from the answers of one group (None for a response without one) to rewards that
    replace the graders'; None: the graders' rewards.
    """

    temperature: float
    samples: Callable[[Sequence[int]], list[int]]
    reward: Callable[[Sequence[str | None]], list[float]] | None = None
    reroll: Reroll | None = None
    fork: Fork | None = None
