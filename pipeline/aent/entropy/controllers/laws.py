"""How a controller moves: (settings, state, measured) -> (next coefficient, next memory)."""

from __future__ import annotations

import math
from collections.abc import Callable

from aent.entropy.controllers.aims import LEAST_ENTROPY
from aent.entropy.controllers.state import (
    ControllerMemory,
    ControllerState,
    Measured,
    distance_outside,
)
from aent.entropy.controllers.values import SettingValues

Law = Callable[[SettingValues, ControllerState, Measured], tuple[float, ControllerMemory]]

MAX_LOG_ERROR = 3.0  # a factor of 20: the most that one odd measurement can move the coefficient
_MAX_EXPONENT = 700.0  # exp of more would overflow


def stay(
    settings: SettingValues, state: ControllerState, measured: Measured
) -> tuple[float, ControllerMemory]:
    return state.coefficient, state.memory


def step_by_error(
    settings: SettingValues, state: ControllerState, measured: Measured
) -> tuple[float, ControllerMemory]:
    """Step against the error, within the box (AEnt, arXiv 2509.03493: the paper's rule)."""
    assert settings.step_size is not None
    moved = state.coefficient - settings.step_size * measured.error
    return in_box(settings, moved), state.memory


def proportional_integral(
    settings: SettingValues, state: ControllerState, measured: Measured
) -> tuple[float, ControllerMemory]:
    """PI control. The integral starts at the coefficient, has its units, and stays within
    [min, max] itself (anti-windup by clamping), so it leaves a bound with the first error of the
    other sign.
    """
    assert settings.proportional_gain is not None
    assert settings.integral_gain is not None
    error = measured.error
    integral = state.memory.get("integral", state.coefficient)
    integral = in_box(settings, integral - settings.integral_gain * error)
    coefficient = in_box(settings, integral - settings.proportional_gain * error)
    return coefficient, state.memory | {"integral": integral}


def log_step(
    settings: SettingValues, state: ControllerState, measured: Measured
) -> tuple[float, ControllerMemory]:
    """SAC-style dual step (the constraint's multiplier of arXiv 1812.05905, section 5, moved on its
    logarithm as implementations do): multiply by exp(step_size * (target - entropy)).

    Certainty: the rule is common knowledge; no constants were published for language models."""
    assert settings.step_size is not None
    factor = math.exp(min(-settings.step_size * measured.error, _MAX_EXPONENT))
    return in_box(settings, state.coefficient * factor), state.memory


def fixed_step_below_target(
    settings: SettingValues, state: ControllerState, measured: Measured
) -> tuple[float, ControllerMemory]:
    """Skywork-OR1 (arXiv 2505.22312): a fixed step up below the target, down above it; applied only
    below it. The stepped value is kept apart from the applied one, which is 0 above the target, so
    that the next entropy below continues from it.

    Certainty: as in its public code (read), whose entropy is the mean of - log-prob of the sampled
    tokens; here it is the recipe's measure."""
    assert settings.step_size is not None
    error = measured.error
    stepped = state.memory.get("stepped", state.coefficient)
    sign = (error > 0) - (error < 0)
    stepped = in_box(settings, stepped - sign * settings.step_size)
    return stepped if error < 0 else 0.0, state.memory | {"stepped": stepped}


def log_proportional_integral(
    settings: SettingValues, state: ControllerState, measured: Measured
) -> tuple[float, ControllerMemory]:
    """PI control of ln H by ln lambda, in velocity form:

    h_t = smoothing h_t-1 + (1 - smoothing) ln H_t; e_t = how far h_t lies outside the aim, on the
    log scale, cut to +- ``MAX_LOG_ERROR``;
    ln lambda <- clip(ln lambda - integral_gain e_t - proportional_gain (e_t - e_t-1)).

    Both are logarithms because a policy's entropy changes by factors, not by nats. There is no sum
    of errors: the coefficient is the integral, so nothing winds up at a bound.

    Ours: velocity-form PI is textbook control; no publication has this rule for language models."""
    assert settings.proportional_gain is not None
    assert settings.integral_gain is not None
    assert settings.smoothing is not None
    assert settings.min is not None
    memory = state.memory
    now = math.log(max(measured.entropy, LEAST_ENTROPY))
    smooth = settings.smoothing * memory.get("log_entropy", now) + (1 - settings.smoothing) * now
    outside = distance_outside((math.log(measured.low), math.log(measured.high)), smooth)
    error = min(max(outside, -MAX_LOG_ERROR), MAX_LOG_ERROR)
    change = error - memory.get("log_error", error)
    move = -settings.integral_gain * error - settings.proportional_gain * change
    # a resumed run of another kind may have left 0, from which no factor leads away
    coefficient = max(state.coefficient, settings.min) * math.exp(min(move, _MAX_EXPONENT))
    first = {"first_entropy": measured.entropy, "first_step": float(state.step)}
    kept = {"log_entropy": smooth, "log_error": error}
    return in_box(settings, coefficient), first | memory | kept


def in_box(settings: SettingValues, coefficient: float) -> float:
    assert settings.min is not None
    assert settings.max is not None
    return min(max(coefficient, settings.min), settings.max)
