"""A law that knows how the entropy responds: an observer of ln H and of the neutral coefficient.

The model, for x = ln H of step t and the step's coefficient lambda_t, with k = exp(-1 / lag_steps):

    f_t = k f_t-1 + (1 - k) lambda_t          the part of the coefficients that acts by now
    x_t+1 = x_t + response (f_t / n - 1)      n: the neutral coefficient

Each measurement corrects both estimates by its surprise s = ln H_t - (the predicted x_t):

    x_t = (the predicted x_t) + (1 - smoothing) s          ln n <- ln n - integral_gain s

(an alpha-beta filter: the Kalman filter of this model with constant gains; Kalata, IEEE Trans.
Aerosp. Electron. Syst. 20, 1984). With e the distance of the predicted x_t+1 from the aim, f is to
be n (1 - proportional_gain e), but at least 0, and the next coefficient is the one that moves f
``LEAD`` of the way there in one step. So noise is averaged without another delay, and the delay of
an optimizer's momentum is compensated.

Ours: textbook control; no publication has this rule for language models.
"""

from __future__ import annotations

import math

from aent.entropy.controllers.aims import LEAST_ENTROPY
from aent.entropy.controllers.state import (
    ControllerMemory,
    ControllerState,
    Measured,
    distance_outside,
)
from aent.entropy.controllers.values import SettingValues

LEAD = 0.5
MAX_SURPRISE = 1.5  # nats of ln H: the most that one odd measurement counts
MAX_ERROR = 3.0
MAX_RISE = 5.0  # of f / n - 1: beyond, the entropy does not rise in proportion


def observe(
    settings: SettingValues, state: ControllerState, measured: Measured
) -> tuple[float, ControllerMemory]:
    """One step of the law above."""
    assert settings.proportional_gain is not None
    assert settings.integral_gain is not None
    assert settings.smoothing is not None
    assert settings.response is not None
    assert settings.lag_steps is not None
    assert settings.min is not None
    assert settings.max is not None
    memory = state.memory
    kept = math.exp(-1 / settings.lag_steps) if settings.lag_steps else 0.0
    used = max(state.coefficient, settings.min)  # a resumed run of another kind may have left 0
    now = math.log(max(measured.entropy, LEAST_ENTROPY))
    predicted = memory.get("predicted", now)
    surprise = _within(now - predicted, MAX_SURPRISE)
    log_neutral = memory.get("log_neutral", math.log(used)) - settings.integral_gain * surprise
    log_neutral = min(max(log_neutral, math.log(settings.min)), math.log(settings.max))
    neutral = math.exp(log_neutral)
    acting = kept * memory.get("acting", used) + (1 - kept) * used
    ahead = predicted + (1 - settings.smoothing) * surprise
    ahead += settings.response * min(acting / neutral - 1, MAX_RISE)
    error = distance_outside((math.log(measured.low), math.log(measured.high)), ahead)
    wanted = neutral * max(1 - settings.proportional_gain * _within(error, MAX_ERROR), 0.0)
    following = acting + LEAD * (wanted - acting)
    coefficient = (following - kept * acting) / (1 - kept)
    first = {"first_entropy": measured.entropy, "first_step": float(state.step)}
    found = {"predicted": ahead, "log_neutral": log_neutral, "acting": acting}
    return min(max(coefficient, settings.min), settings.max), first | memory | found


def _within(value: float, most: float) -> float:
    return min(max(value, -most), most)
