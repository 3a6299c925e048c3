"""The observer's law against a Kalman filter in matrices, and in closed loop on its own model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aent.entropy.controllers import ControllerSettings, describe, initial_state, update
from wording import assert_names, naming

SETTINGS = ControllerSettings("observer", 0.05, target=0.5, ramp_steps=0)


def test_the_law_is_a_filter_with_constant_gains_and_a_feedback_of_its_state() -> None:
    """state = (ln H, ln n, f); its prediction is linear in f, with n as estimated."""
    rng = np.random.default_rng(0)
    entropies = np.exp(rng.normal(-0.7, 0.4, 30))
    state, used = initial_state(SETTINGS), []
    for entropy in entropies:
        used.append(state.coefficient)
        state, _ = update(SETTINGS, state, float(entropy))

    kept = math.exp(-1 / 3.0)
    gain = np.array([0.45, -0.1, 0.0])
    believed = np.array([math.log(entropies[0]), math.log(0.05), 0.05])
    coefficient = 0.05
    for entropy, was in zip(entropies, used, strict=True):
        assert was == pytest.approx(coefficient, rel=1e-12)
        surprise = np.clip(math.log(entropy) - believed[0], -1.5, 1.5)
        believed = believed + gain * surprise
        believed[1] = np.clip(believed[1], math.log(1e-3), 0)
        believed[2] += (1 - kept) * (coefficient - believed[2])
        neutral = math.exp(believed[1])
        believed[0] += 0.08 * min(believed[2] / neutral - 1, 5)
        error = np.clip(believed[0] - math.log(0.5), -3, 3)
        wanted = neutral * max(1 - 5 * error, 0)
        # (1 - kept) c + kept f = f + (wanted - f) / 2
        coefficient = (0.5 * (wanted + believed[2]) - kept * believed[2]) / (1 - kept)
        coefficient = min(max(coefficient, 1e-3), 1)


@pytest.mark.parametrize("neutral", [0.02, 0.05, 0.15])
@pytest.mark.parametrize("begin", [0.05, 3.0])
@pytest.mark.parametrize("lag", [0.0, 5.0])
def test_its_own_model_ends_on_target(neutral: float, begin: float, lag: float) -> None:
    """Whatever the neutral coefficient is; also if the policy answers later than it is told."""
    settings = ControllerSettings("observer", 0.05, target=0.5)
    kept = math.exp(-1 / lag) if lag else 0.0
    state, level, acting = initial_state(settings), math.log(begin), 0.05
    for _ in range(400):
        coefficient = state.coefficient
        state, _ = update(settings, state, math.exp(level))
        acting = kept * acting + (1 - kept) * coefficient
        level = min(max(level + 0.08 * (acting / neutral - 1), -5.0), 2.0)
    assert math.exp(level) == pytest.approx(0.5, rel=0.02)
    assert state.coefficient == pytest.approx(neutral, rel=0.05)


def test_a_band_is_left_alone_inside() -> None:
    settings = ControllerSettings("observer", 0.05, low=0.3, high=0.8, ramp_steps=0)
    state = initial_state(settings)
    for _ in range(5):
        state, _ = update(settings, state, 0.5)
    assert state.coefficient == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, "controller.target controller.low"),
        ({"target": 0.5, "response": 0.0}, "controller.response 0"),
        ({"target": 0.5, "lag_steps": -1.0}, "controller.lag_steps -1"),
        ({"target": 0.5, "lag_steps": 1e9}, "controller.lag_steps 1000"),
        ({"target": 0.5, "min": 0.0}, "controller.min 0"),
        ({"target": 0.0}, "controller.target 0"),
        ({"target": 0.5, "step_size": 0.1}, "controller.step_size"),
    ],
)
def test_wrong_settings_name_the_field(fields: dict[str, float], names: str) -> None:
    with pytest.raises(ValueError, match=naming(*names.split())):
        ControllerSettings("observer", 0.05, **fields)


def test_other_kinds_have_no_model() -> None:
    with pytest.raises(ValueError, match=naming("controller.response", "log_pi")):
        ControllerSettings("log_pi", 0.05, target=0.5, response=0.1)


def test_it_says_what_it_does() -> None:
    assert_names(describe(SETTINGS), 0.5, 0.08, 3, 5, 0.1, 0.55)
