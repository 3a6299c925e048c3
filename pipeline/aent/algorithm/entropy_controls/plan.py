"""What a step's rollouts are to be: what the engine is asked for besides the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reroll:
    """Prompts that are asked once more, at another temperature (``rollouts.reroll``)."""

    share: float  # of the step's prompts, its first ones
    temperature: float
    limit: int  # responses that are kept, at most


@dataclass(frozen=True)
class Fork:
    """Trees in place of single responses (``rollouts.in_trees``)."""

    forks: int  # tokens of a response at which others branch off
    branches: int  # at each of them


@dataclass(frozen=True)
class Plan:
    """The recipe's rollouts, as its entropy controls change them for one step.

    temperature: of every request, and of the policy whose log-probs the trainer computes. samples:
    from the items (indices of questions) of some prompts, how many responses each gets. reward:
    from the answers of one group (None where a response has none), the rewards that take the place
    of the judge's; None: the judge's.
    """

    temperature: float
    samples: Callable[[Sequence[int]], list[int]]
    reward: Callable[[Sequence[str | None]], list[float]] | None = None
    reroll: Reroll | None = None
    fork: Fork | None = None
