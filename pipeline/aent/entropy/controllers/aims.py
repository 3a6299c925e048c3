"""Where a controller wants the entropy: (settings, state, entropy) -> (low, high) in nats.

The entropy is this step's, None if it was not measured. The result is None if there is no aim
(yet).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from aent.entropy.controllers.state import ControllerMemory, ControllerState, distance_outside
from aent.entropy.controllers.values import SettingValues

Interval = tuple[float, float]
Aim = Callable[[SettingValues, ControllerState, float | None], Interval | None]

LEAST_ENTROPY = 1e-6  # nats: the least entropy whose logarithm is taken


def none(settings: SettingValues, state: ControllerState, entropy: float | None) -> None:
    return None


def band(settings: SettingValues, state: ControllerState, entropy: float | None) -> Interval:
    assert settings.low is not None
    assert settings.high is not None
    return settings.low, settings.high


def automatic_band(
    settings: SettingValues, state: ControllerState, entropy: float | None
) -> Interval | None:
    assert settings.low_fraction is not None
    assert settings.high_fraction is not None
    assert settings.reference_steps is not None
    memory = state.memory
    if memory.get("reference_count", 0) < settings.reference_steps:
        return None
    reference = memory["reference_sum"] / memory["reference_count"]
    return settings.low_fraction * reference, settings.high_fraction * reference


def target(settings: SettingValues, state: ControllerState, entropy: float | None) -> Interval:
    assert settings.target is not None
    return settings.target, settings.target


def approach(
    settings: SettingValues, state: ControllerState, entropy: float | None
) -> Interval | None:
    """The target or band, shifted by the remaining part of the first entropy's distance from it.

    With H_0 the first entropy measured and t the steps since then, a target H* is at
    H* + (H_0 - H*) exp(-t / ramp_steps); a band moves by the same rule, with the distance to its
    nearer edge.
    """
    assert settings.ramp_steps is not None
    end = target(settings, state, entropy) if settings.low is None else band(settings, state, None)
    first = state.memory.get("first_entropy", entropy)
    if first is None or not math.isfinite(first):
        return None
    since = state.step - state.memory.get("first_step", state.step)
    left = math.exp(-since / settings.ramp_steps) if settings.ramp_steps else 0.0
    shift = left * distance_outside(end, max(first, LEAST_ENTROPY))
    return end[0] + shift, end[1] + shift


def annealing(settings: SettingValues, step: int) -> float:
    """The factor on the aim of this step, from 1 to ``anneal_to`` in ``anneal_steps`` steps, on a
    straight line and then constant (Entrocraft, arXiv 2604.26326, which found a linear schedule of
    its band best; there from 0.6 to 0.4 nats, or 0.7 to 0.5, over the run)."""
    if settings.anneal_to is None or settings.anneal_steps is None:
        return 1.0
    return 1 + (settings.anneal_to - 1) * min(1.0, step / settings.anneal_steps)


def with_reference(
    settings: SettingValues, memory: ControllerMemory, entropy: float
) -> ControllerMemory:
    """Add this entropy to the reference of an automatic band while that is being measured."""
    count = memory.get("reference_count", 0.0)
    if settings.reference_steps is None or count >= settings.reference_steps:
        return memory
    total = memory.get("reference_sum", 0.0) + entropy
    return memory | {"reference_count": count + 1, "reference_sum": total}
