"""Controllers of the entropy coefficient: pure functions of settings, state and measured entropy.

Convention, everywhere: steps count from 0; the ``coefficient`` of step t is what entered its loss;
the one update of step t makes ``next_coefficient`` from it and from H_t, the entropy measured over
every token of the step. With ``warmup_steps`` = w the updates of steps 0 .. w-1 leave the
coefficient alone, so the first that moves it consumes H_w.

A kind has an *aim*, the interval in which it wants the entropy (a target is an interval of one
point), and a *law*, which moves the coefficient by the error: how far the entropy lies outside the
aim. A new kind is one entry of ``KINDS``. Nothing here reads, writes or depends on anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Memory = dict[str, float]  # what a kind remembers besides the coefficient


@dataclass(frozen=True)
class ControllerSettings:
    """What a recipe says about the coefficient; entropies in nats. ``KINDS`` says who needs what.

    kind: a name in KINDS. initial: coefficient of step 0. low, high: the band the entropy should
    stay in. low_fraction, high_fraction: the same as fractions of the mean entropy of the first
    ``reference_steps`` measured steps. target: the entropy wanted. step_size: what the coefficient
    (``dual``: its logarithm) moves per step and nat of error; with ``target``, per step.
    proportional_gain, integral_gain: coefficient per nat of error, and per nat of error and step.
    min, max: the box the coefficient stays in. warmup_steps: steps before the first update that
    may move it.

    Raises ValueError naming every faulty field, when made.
    """

    kind: str
    initial: float
    low: float | None = None
    high: float | None = None
    low_fraction: float | None = None
    high_fraction: float | None = None
    reference_steps: int | None = None
    target: float | None = None
    step_size: float | None = None
    proportional_gain: float | None = None
    integral_gain: float | None = None
    min: float | None = None
    max: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        found = list(faults(asdict(self)))
        if found:
            raise ValueError("; ".join(found))


@dataclass(frozen=True)
class ControllerState:
    """What a checkpoint keeps; plain numbers and text, through ``to_dict`` and ``from_dict``.

    coefficient: of the step to come. step: that step, counted from 0. at_bound, steps_at_bound: as
    last reported. memory: what the kind keeps besides (an integral, a measured reference, ...).
    """

    coefficient: float
    step: int = 0
    at_bound: str = ""
    steps_at_bound: int = 0
    memory: Memory = field(default_factory=dict)

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
    low, high: the aim in nats, equal for a target; NaN where there is none (yet). error: how far
    the entropy lies outside it, in nats: negative below, positive above, 0 inside or without an
    aim; NaN if skipped. move: next_coefficient - coefficient. at_bound: 'low' or 'high' if the
    coefficient (``target``: the stepped one) has arrived at min or max, else ''; steps_at_bound:
    for how many updates in a row. skipped: the measurement was missing or not finite.
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


# -- aims: (settings, memory) -> (low, high), None where there is none (yet)

Aim = Callable[[ControllerSettings, Memory], tuple[float, float] | None]


def _no_aim(settings: ControllerSettings, memory: Memory) -> None:
    return None


def _band(settings: ControllerSettings, memory: Memory) -> tuple[float, float]:
    assert settings.low is not None
    assert settings.high is not None
    return settings.low, settings.high


def _automatic_band(settings: ControllerSettings, memory: Memory) -> tuple[float, float] | None:
    assert settings.low_fraction is not None
    assert settings.high_fraction is not None
    assert settings.reference_steps is not None
    if memory.get("reference_count", 0) < settings.reference_steps:
        return None
    reference = memory["reference_sum"] / memory["reference_count"]
    return settings.low_fraction * reference, settings.high_fraction * reference


def _target(settings: ControllerSettings, memory: Memory) -> tuple[float, float]:
    assert settings.target is not None
    return settings.target, settings.target


# -- laws: (settings, state, error) -> (next coefficient, next memory)

Law = Callable[[ControllerSettings, ControllerState, float], tuple[float, Memory]]


def _stay(
    settings: ControllerSettings, state: ControllerState, error: float
) -> tuple[float, Memory]:
    return state.coefficient, state.memory


def _step_by_error(
    settings: ControllerSettings, state: ControllerState, error: float
) -> tuple[float, Memory]:
    """Step against the error, within the box (AEnt, arXiv 2509.03493: the paper's rule)."""
    assert settings.step_size is not None
    return _in_box(settings, state.coefficient - settings.step_size * error), state.memory


def _proportional_integral(
    settings: ControllerSettings, state: ControllerState, error: float
) -> tuple[float, Memory]:
    """PI control. The integral, kept in units of the coefficient and begun at ``initial``, stays in
    the box itself (anti-windup by clamping): it leaves a bound with the first error that says so.
    """
    assert settings.proportional_gain is not None
    assert settings.integral_gain is not None
    integral = state.memory.get("integral", settings.initial)
    integral = _in_box(settings, integral - settings.integral_gain * error)
    coefficient = _in_box(settings, integral - settings.proportional_gain * error)
    return coefficient, state.memory | {"integral": integral}


def _log_step(
    settings: ControllerSettings, state: ControllerState, error: float
) -> tuple[float, Memory]:
    """SAC-style dual step (the constraint's multiplier of arXiv 1812.05905, section 5, moved on its
    logarithm as implementations do): multiply by exp(step_size * (target - entropy)).

    Certainty: the rule is common knowledge; no constants were published for language models."""
    assert settings.step_size is not None
    factor = math.exp(min(-settings.step_size * error, 700.0))  # of more, exp would overflow
    return _in_box(settings, state.coefficient * factor), state.memory


def _fixed_step_below_target(
    settings: ControllerSettings, state: ControllerState, error: float
) -> tuple[float, Memory]:
    """Skywork-OR1 (arXiv 2505.22312): a fixed step up below the target, down above it; applied only
    below it. What steps is remembered apart from what is applied, which is 0 above the target: the
    next entropy below finds it where it was.

    Certainty: as in its public code (read), whose entropy is the mean of - log-prob of the sampled
    tokens; here it is the recipe's measure."""
    assert settings.step_size is not None
    stepped = state.memory.get("stepped", settings.initial)
    sign = (error > 0) - (error < 0)
    stepped = _in_box(settings, stepped - sign * settings.step_size)
    return stepped if error < 0 else 0.0, state.memory | {"stepped": stepped}


@dataclass(frozen=True)
class Kind:
    """A controller: where it wants the entropy, how it moves, the settings it cannot do without,
    and what it does in words (a format string over the settings)."""

    aim: Aim
    law: Law
    needs: tuple[str, ...]
    words: str


KINDS: dict[str, Kind] = {
    "constant": Kind(_no_aim, _stay, (), "constant"),
    "band": Kind(
        _band,
        _step_by_error,
        ("low", "high", "step_size", "min", "max"),
        "+{step_size:g} per nat below {low:g}, -{step_size:g} per nat above {high:g}",
    ),
    "automatic_band": Kind(
        _automatic_band,
        _step_by_error,
        ("low_fraction", "high_fraction", "reference_steps", "step_size", "min", "max"),
        "+{step_size:g} per nat below {low_fraction:g} times, -{step_size:g} per nat above "
        "{high_fraction:g} times the mean entropy of the first {reference_steps} steps",
    ),
    "proportional_integral": Kind(
        _target,
        _proportional_integral,
        ("target", "proportional_gain", "integral_gain", "min", "max"),
        "{proportional_gain:g} x (nats below {target:g}) + the sum over steps of "
        "{integral_gain:g} x (nats below {target:g})",
    ),
    "dual": Kind(
        _target,
        _log_step,
        ("target", "step_size", "min", "max"),
        "multiplied by exp({step_size:g} x (nats below {target:g}))",
    ),
    "target": Kind(
        _target,
        _fixed_step_below_target,
        ("target", "step_size", "min", "max"),
        "+{step_size:g} below {target:g} nats, -{step_size:g} above, where it is not applied (0)",
    ),
}


# -- the interface


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
    kind, coefficient = KINDS[settings.kind], state.coefficient
    low, high = aim = kind.aim(settings, state.memory) or (math.nan, math.nan)
    if entropy is None or not math.isfinite(entropy):
        skipped = ControllerState(
            coefficient, state.step + 1, state.at_bound, state.steps_at_bound, state.memory
        )
        return skipped, ControllerReport(
            coefficient, coefficient, low, high, math.nan, 0.0, state.at_bound,
            state.steps_at_bound, True,
        )  # fmt: skip

    error = distance_outside(aim, entropy)
    following, memory = coefficient, state.memory
    if state.step >= settings.warmup_steps and not math.isnan(low):
        following, memory = kind.law(settings, state, error)
    at_bound = _bound(settings, memory.get("stepped", following))
    before = state.steps_at_bound if at_bound == state.at_bound else 0
    run = before + 1 if at_bound else 0
    memory = _with_reference(settings, memory, entropy)
    report = ControllerReport(
        coefficient, following, low, high, error, following - coefficient, at_bound, run, False
    )
    return ControllerState(following, state.step + 1, at_bound, run, memory), report


def distance_outside(aim: tuple[float, float], entropy: float) -> float:
    """Return min(0, H - low) + max(0, H - high) in nats; 0 without an aim (NaN)."""
    low, high = aim
    return 0.0 if math.isnan(low) else min(0.0, entropy - low) + max(0.0, entropy - high)


def describe(settings: ControllerSettings) -> str:
    """What the controller will do, in one sentence."""
    words = KINDS[settings.kind].words.format(**asdict(settings))
    first = settings.warmup_steps
    if settings.kind == "constant":
        return f"{settings.initial:g} at every step"
    start = f"{settings.initial:g} at first; from the entropy of step {first} on, "
    if settings.kind == "automatic_band":
        start = f"{settings.initial:g} at first; after {max(first, settings.reference_steps or 0)} "
        start += "steps, "
    return f"{start}{words}; kept in [{settings.min:g}, {settings.max:g}]"


def faults(values: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each thing that is wrong with these values of ControllerSettings' fields."""
    name = values["kind"]
    if name not in KINDS:
        yield f"controller.kind is {name!r}, but must be one of {', '.join(KINDS)}"
        return
    needs = KINDS[name].needs
    missing = [f"controller.{key}" for key in needs if values[key] is None]
    if missing:
        yield f"controller.kind={name} needs {', '.join(missing)}"
    used = {"kind", "initial", *needs} | ({"warmup_steps"} if needs else set())
    for key, value in values.items():
        if key == "kind" or value is None:
            continue
        if key not in used and (key, value) != ("warmup_steps", 0):
            yield f"controller.{key} has no meaning with controller.kind={name}"
        elif not math.isfinite(value):
            yield f"controller.{key}={value} must be finite"
        elif key != "target" and value < 0:
            yield f"controller.{key}={value:g} must be 0 or more"
    for low, high in (("low", "high"), ("low_fraction", "high_fraction"), ("min", "max")):
        if None not in (values[low], values[high]) and values[low] > values[high]:
            yield f"controller.{low}={values[low]:g} is above controller.{high}={values[high]:g}"
            return
    if "min" in needs and values["min"] is not None and values["initial"] < values["min"]:
        yield f"controller.initial={values['initial']:g} is below controller.min={values['min']:g}"
    if "max" in needs and values["max"] is not None and values["initial"] > values["max"]:
        yield f"controller.initial={values['initial']:g} is above controller.max={values['max']:g}"
    if name == "dual" and values["min"] == 0:
        yield "controller.min=0 must be above 0 with controller.kind=dual, which moves a logarithm"
    if values["reference_steps"] == 0:
        yield "controller.reference_steps=0 must be 1 or more"


def _with_reference(settings: ControllerSettings, memory: Memory, entropy: float) -> Memory:
    """Count this entropy in, while the reference of an automatic band is still being measured."""
    count = memory.get("reference_count", 0.0)
    if settings.reference_steps is None or count >= settings.reference_steps:
        return memory
    total = memory.get("reference_sum", 0.0) + entropy
    return memory | {"reference_count": count + 1, "reference_sum": total}


def _in_box(settings: ControllerSettings, coefficient: float) -> float:
    assert settings.min is not None
    assert settings.max is not None
    return min(max(coefficient, settings.min), settings.max)


def _bound(settings: ControllerSettings, coefficient: float) -> str:
    if settings.min is not None and coefficient == settings.min:
        return "low"
    if settings.max is not None and coefficient == settings.max:
        return "high"
    return ""
