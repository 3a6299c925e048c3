"""Controllers of the entropy coefficient: pure functions of settings, state and measured entropy.

Conventions: steps count from 0. The ``coefficient`` of step t entered its loss. The one update of
step t computes ``next_coefficient`` from it and from H_t, the entropy measured over every token of
the step. With ``warmup_steps`` = w the updates of steps 0 .. w-1 do not move the coefficient, so
the first update that moves it uses H_w.

A kind has an *aim* (``aims``), the interval in which it wants the entropy (a target is an interval
of one point), and a *law* (``laws``), which moves the coefficient according to how far the entropy
lies outside the aim. A new kind is one entry of ``KINDS``. Nothing here reads or writes anything.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from aent.entropy.controllers.aims import annealing, with_reference
from aent.entropy.controllers.checks import faults
from aent.entropy.controllers.kinds import KINDS, Kind
from aent.entropy.controllers.settings import ControllerSettings
from aent.entropy.controllers.state import (
    ControllerMemory,
    ControllerReport,
    ControllerState,
    Measured,
    distance_outside,
    held_interval,
)

__all__ = [
    "KINDS",
    "ControllerMemory",
    "ControllerReport",
    "ControllerSettings",
    "ControllerState",
    "Kind",
    "annealing",
    "describe",
    "distance_outside",
    "faults",
    "held_interval",
    "initial_state",
    "resumed",
    "update",
]  # fmt: skip


def initial_state(settings: ControllerSettings) -> ControllerState:
    """Return the state before step 0."""
    return ControllerState(coefficient=settings.initial)


def resumed(settings: ControllerSettings, saved: ControllerState) -> ControllerState:
    """The saved state under settings that may have changed since: another constant applies at once,
    and so does another box. What the law of another kind kept is forgotten: it would be out of date
    if that kind came back."""
    coefficient = saved.coefficient
    if settings.kind == "constant":
        coefficient = settings.initial
    elif settings.min is not None and settings.max is not None:
        least = 0.0 if settings.kind == "target" else settings.min  # it applies 0 above its target
        coefficient = min(max(coefficient, least), settings.max)
    others = {key for kind in KINDS.values() for key in kind.memory}
    others -= set(KINDS[settings.kind].memory)
    memory = {key: value for key, value in saved.memory.items() if key not in others}
    return replace(saved, coefficient=coefficient, memory=memory)


def update(
    settings: ControllerSettings, state: ControllerState, entropy: float | None
) -> tuple[ControllerState, ControllerReport]:
    """Compute the next step's coefficient from this step's and its measured entropy (nats).

    Called once per step. A missing (None) or non-finite entropy is skipped: only the step count
    changes, so the warm-up still ends at the same step.
    """
    kind, coefficient = KINDS[settings.kind], state.coefficient
    factor = annealing(settings, state.step)
    low, high = (factor * end for end in kind.aim(settings, state, entropy) or (math.nan, math.nan))
    if entropy is None or not math.isfinite(entropy):
        skipped = ControllerState(
            coefficient, state.step + 1, state.at_bound, state.steps_at_bound, state.memory
        )
        return skipped, ControllerReport(
            coefficient, coefficient, low, high, math.nan, 0.0, state.at_bound,
            state.steps_at_bound, True,
        )  # fmt: skip

    measured = Measured(entropy, low, high)
    following, memory = coefficient, state.memory
    if state.step >= settings.warmup_steps and not math.isnan(low):
        following, memory = kind.law(settings, state, measured)
    at_bound = _bound(settings, memory.get("stepped", following))
    before = state.steps_at_bound if at_bound == state.at_bound else 0
    run = before + 1 if at_bound else 0
    memory = with_reference(settings, memory, entropy)
    move = following - coefficient
    report = ControllerReport(
        coefficient, following, low, high, measured.error, move, at_bound, run, False
    )
    return ControllerState(following, state.step + 1, at_bound, run, memory), report


def describe(settings: ControllerSettings) -> str:
    """What the controller will do, in one sentence."""
    if settings.kind == "constant":
        return f"{settings.initial:g} at every step"
    ends = (settings.target,) if settings.target is not None else (settings.low, settings.high)
    aim = " to ".join(f"{end:g}" for end in ends if end is not None)
    words = KINDS[settings.kind].words.format(**asdict(settings), aim=aim)
    first = settings.warmup_steps
    start = f"{settings.initial:g} at first; from the entropy of step {first} on, "
    if settings.kind == "automatic_band":
        start = f"{settings.initial:g} at first; after {max(first, settings.reference_steps or 0)} "
        start += "steps, "
    annealed = ""
    if settings.anneal_to is not None:
        annealed = f"; its aim moves linearly to {settings.anneal_to:g} "
        annealed += f"times that in {settings.anneal_steps} steps"
    return f"{start}{words}{annealed}; kept in [{settings.min:g}, {settings.max:g}]"


def _bound(settings: ControllerSettings, coefficient: float) -> str:
    if settings.min is not None and coefficient == settings.min:
        return "low"
    if settings.max is not None and coefficient == settings.max:
        return "high"
    return ""
