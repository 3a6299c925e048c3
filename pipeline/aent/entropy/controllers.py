"""Controllers of the entropy coefficient: pure functions of settings, state and measured entropy.

Convention, everywhere: steps count from 0; the ``coefficient`` of step t is what entered its loss;
the one update of step t makes ``next_coefficient`` from it and from H_t, the entropy measured over
every token of the step. With ``warmup_steps`` = w the updates of steps 0 .. w-1 leave the
coefficient alone, so the first that moves it consumes H_w.

A new kind is one entry of ``KINDS``. Nothing here reads, writes or depends on anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ControllerSettings:
    """What a recipe says about the coefficient; entropies in nats.

    kind: a name in KINDS. initial: coefficient of step 0. low, high: the band the entropy should
    stay in. step_size: change of the coefficient per nat outside the band. min, max: the box the
    coefficient stays in. warmup_steps: steps before the first update that may move it.
    ``constant`` uses ``initial`` alone; ``band`` needs all.

    Raises ValueError naming the field, when made.
    """

    kind: str
    initial: float
    low: float | None = None
    high: float | None = None
    step_size: float | None = None
    min: float | None = None
    max: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"controller.kind is {self.kind!r}, but must be one of {list(KINDS)}")
        for name in ("initial", *KINDS[self.kind].needs):
            value = getattr(self, name)
            if value is None:
                raise ValueError(f"controller.{name} is missing: kind {self.kind!r} needs it")
            if not math.isfinite(value):
                raise ValueError(f"controller.{name} is {value}, but must be finite")
        if self.warmup_steps < 0:
            raise ValueError(
                f"controller.warmup_steps is {self.warmup_steps}, but must be 0 or more"
            )
        if self.step_size is not None and self.step_size < 0:
            raise ValueError(f"controller.step_size is {self.step_size}, but must be 0 or more")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"controller.low is {self.low}, above controller.high {self.high}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"controller.min is {self.min}, above controller.max {self.max}")
        if self.min is not None and self.initial < self.min:
            raise ValueError(
                f"controller.initial is {self.initial}, below controller.min {self.min}"
            )
        if self.max is not None and self.initial > self.max:
            raise ValueError(
                f"controller.initial is {self.initial}, above controller.max {self.max}"
            )


@dataclass(frozen=True)
class ControllerState:
    """What a checkpoint keeps; plain numbers and text, through ``to_dict`` and ``from_dict``.

    coefficient: of the step to come. step: that step, counted from 0. at_bound, steps_at_bound: as
    last reported. memory: what a kind keeps besides (neither kind below keeps anything).
    """

    coefficient: float
    step: int = 0
    at_bound: str = ""
    steps_at_bound: int = 0
    memory: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> ControllerState:
        """Undo ``to_dict``. Raises TypeError naming a field that is unknown or missing."""
        return cls(**saved)


@dataclass(frozen=True)
class ControllerReport:
    """One update, for the log.

    coefficient: what entered the loss of this step. next_coefficient: what the next one uses.
    error: how far the entropy lies outside the band, in nats: negative below, positive above, 0
    inside or without a band; NaN if skipped. move: next_coefficient - coefficient. at_bound: 'low'
    or 'high' if next_coefficient equals min or max, else ''; steps_at_bound: for how many updates
    in a row. skipped: the measurement was missing or not finite.
    """

    coefficient: float
    next_coefficient: float
    error: float
    move: float
    at_bound: str
    steps_at_bound: int
    skipped: bool


# (settings, state, entropy) -> (next coefficient before the box, next memory)
Rule = Callable[[ControllerSettings, ControllerState, float], tuple[float, dict[str, float]]]


@dataclass(frozen=True)
class Kind:
    """A controller: its update rule, and the optional settings without which it cannot work."""

    rule: Rule
    needs: tuple[str, ...] = ()


def _constant(
    settings: ControllerSettings, state: ControllerState, entropy: float
) -> tuple[float, dict[str, float]]:
    return state.coefficient, state.memory


def _band(
    settings: ControllerSettings, state: ControllerState, entropy: float
) -> tuple[float, dict[str, float]]:
    """Step against the distance outside the band (AEnt, arXiv 2509.03493)."""
    assert settings.step_size is not None
    step = settings.step_size * distance_outside_band(settings, entropy)
    return state.coefficient - step, state.memory


KINDS: dict[str, Kind] = {
    "constant": Kind(_constant),
    "band": Kind(_band, needs=("low", "high", "step_size", "min", "max")),
}


def initial_state(settings: ControllerSettings) -> ControllerState:
    """Return the state before step 0."""
    return ControllerState(coefficient=settings.initial)


def update(
    settings: ControllerSettings, state: ControllerState, entropy: float | None
) -> tuple[ControllerState, ControllerReport]:
    """Make the next step's coefficient from this step's and its measured entropy (nats).

    Called once per step. A missing (None) or non-finite entropy is skipped: it changes nothing but
    the step count, so that the warm-up still ends at the same step.
    """
    coefficient = state.coefficient
    if entropy is None or not math.isfinite(entropy):
        skipped = ControllerState(
            coefficient, state.step + 1, state.at_bound, state.steps_at_bound, state.memory
        )
        return skipped, ControllerReport(
            coefficient, coefficient, math.nan, 0.0, state.at_bound, state.steps_at_bound, True
        )

    following, memory = coefficient, state.memory
    if state.step >= settings.warmup_steps:
        following, memory = KINDS[settings.kind].rule(settings, state, entropy)
        following = _in_box(settings, following)
    at_bound = _bound(settings, following)
    before = state.steps_at_bound if at_bound == state.at_bound else 0
    run = before + 1 if at_bound else 0
    error = distance_outside_band(settings, entropy)
    report = ControllerReport(
        coefficient, following, error, following - coefficient, at_bound, run, False
    )
    return ControllerState(following, state.step + 1, at_bound, run, memory), report


def distance_outside_band(settings: ControllerSettings, entropy: float) -> float:
    """Return min(0, H - low) + max(0, H - high), in nats; a side without a bound adds nothing."""
    below = 0.0 if settings.low is None else min(0.0, entropy - settings.low)
    above = 0.0 if settings.high is None else max(0.0, entropy - settings.high)
    return below + above


def _in_box(settings: ControllerSettings, coefficient: float) -> float:
    low = -math.inf if settings.min is None else settings.min
    high = math.inf if settings.max is None else settings.max
    return min(max(coefficient, low), high)


def _bound(settings: ControllerSettings, coefficient: float) -> str:
    if settings.min is not None and coefficient == settings.min:
        return "low"
    if settings.max is not None and coefficient == settings.max:
        return "high"
    return ""
