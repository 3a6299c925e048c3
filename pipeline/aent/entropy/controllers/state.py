"""A controller's state between steps, and its report of each step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

ControllerMemory = dict[str, float]  # what a kind remembers besides the coefficient


@dataclass(frozen=True)
class ControllerState:
    """The part of a checkpoint that is the controller's: numbers and text (``to_dict``,
    ``from_dict``).

    coefficient: of the next step. step: the number of that step, from 0. at_bound, steps_at_bound:
    as last reported. memory: other state of the kind (an integral, a measured reference, ...).
    """

    coefficient: float
    step: int = 0
    at_bound: str = ""
    steps_at_bound: int = 0
    memory: ControllerMemory = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> ControllerState:
        """Undo ``to_dict``. Raises TypeError naming a field that is unknown or missing."""
        return cls(**saved)


@dataclass(frozen=True)
class ControllerReport:
    """One update, for the log.

    coefficient: of this step's loss. next_coefficient: of the next step's. low, high: the aim in
    nats, equal for a target; NaN if there is none (yet). error: how far the entropy lies outside
    it, in nats: negative below, positive above, 0 inside or without an aim; NaN if skipped. move:
    next_coefficient - coefficient. at_bound: 'low' or 'high' if the coefficient (``target``: the
    stepped one) is at min or max, else ''; steps_at_bound: for how many updates in a row. skipped:
    the measurement was missing or not finite.
    """

    coefficient: float
    next_coefficient: float
    low: float
    high: float
    error: float
    move: float
    at_bound: str
    steps_at_bound: int
    skipped: bool


@dataclass(frozen=True)
class Measured:
    """The entropy of a step, finite, beside the aim [low, high] of that step; all in nats."""

    entropy: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Nats outside the aim: negative below, positive above, 0 inside."""
        return distance_outside((self.low, self.high), self.entropy)


# factors of a target between which the entropy counts as held (0.3 to 0.8 nats for 0.5)
HELD_LOW, HELD_HIGH = 0.6, 1.6


def held_interval(low: float, high: float) -> tuple[float, float]:
    """The interval in which an entropy counts as held, nats: the aim itself if it is a band, and
    [0.6 T, 1.6 T] if it is a target T, which no measured entropy equals."""
    return (HELD_LOW * low, HELD_HIGH * high) if low == high else (low, high)


def distance_outside(aim: tuple[float, float], entropy: float) -> float:
    """Return min(0, H - low) + max(0, H - high) in nats; 0 without an aim (NaN)."""
    low, high = aim
    return 0.0 if math.isnan(low) else min(0.0, entropy - low) + max(0.0, entropy - high)
