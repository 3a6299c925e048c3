"""PI control on logarithms: against its formula in float64, at its limits, in a closed loop."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from aent.entropy.controllers import (
    ControllerReport,
    ControllerSettings,
    ControllerState,
    describe,
    initial_state,
    update,
)
from wording import assert_names, naming

TARGET = ControllerSettings("log_pi", 0.1, target=0.5, ramp_steps=15, integral_gain=0.15)
BAND = ControllerSettings(
    "log_pi", 0.1, low=0.3, high=0.8, ramp_steps=0, smoothing=0, integral_gain=0.15
)


def run(
    settings: ControllerSettings, entropies: list[float], state: ControllerState | None = None
) -> tuple[list[ControllerReport], ControllerState]:
    state, reports = state or initial_state(settings), []
    for entropy in entropies:
        state, report = update(settings, state, entropy)
        reports.append(report)
    return reports, state


def noisy(steps: int, seed: int = 0) -> np.ndarray:
    """An entropy that falls from 3 to 0.2 nats, with noise by factors."""
    noise = np.random.default_rng(seed).normal(0, 0.2, steps)
    return np.exp(np.linspace(math.log(3), math.log(0.2), steps) + noise)


@pytest.mark.parametrize(
    ("target", "ramp", "smoothing"), [(0.5, 15, 0.3), (1.2, 5, 0), (4, 0, 0.8)]
)
def test_the_sum_of_the_velocity_form_is_the_formula(
    target: float, ramp: float, smoothing: float
) -> None:
    """ln lambda_T = ln lambda_0 - Ki sum e - Kp (e_T - e_0), within a box that is never met."""
    entropies = noisy(60)
    settings = ControllerSettings(
        "log_pi", 0.1, target=target, ramp_steps=ramp, smoothing=smoothing, proportional_gain=0.7,
        integral_gain=0.03, min=1e-9, max=1e9,
    )  # fmt: skip
    reports, _ = run(settings, entropies.tolist())
    steps = np.arange(60, dtype=np.float64)
    left = np.exp(-steps / ramp) if ramp else np.zeros(60)
    aim = target + (entropies[0] - target) * left
    log = np.log(entropies)
    ages = steps[:, None] - steps[None, :]
    weights = np.where(ages >= 0, (1 - smoothing) * smoothing ** np.maximum(ages, 0), 0)
    weights[:, 0] = smoothing**steps  # the first one stands for all before it
    error = weights @ log - np.log(aim)
    want = math.log(0.1) - 0.03 * np.cumsum(error) - 0.7 * (error - error[0])
    got = [r.next_coefficient for r in reports]
    np.testing.assert_allclose(got, np.exp(want), rtol=1e-12)
    np.testing.assert_allclose([r.low for r in reports], aim, rtol=1e-14)
    np.testing.assert_allclose([r.high for r in reports], aim, rtol=1e-14)
    np.testing.assert_allclose([r.error for r in reports], entropies - aim, atol=1e-14)


def test_the_error_and_the_coefficient_are_cut() -> None:
    """Step by step, with an entropy of 0 and one of 1e9 nats among the others, and a small box."""
    entropies = [1.0, 0.4, 0.0, 1e9, 0.6, 0.5, 1e9, 1e9, 0.0, 0.5]
    reports, _ = run(replace(TARGET, min=0.05, max=0.2), entropies)
    smooth, before, coefficient, bounds = 0.0, 0.0, 0.1, set()
    for step, (entropy, report) in enumerate(zip(entropies, reports, strict=True)):
        now = math.log(max(entropy, 1e-6))
        smooth = 0.3 * smooth + 0.7 * now if step else now
        error = smooth - math.log(0.5 + 0.5 * math.exp(-step / 15))
        error = max(-3.0, min(3.0, error))
        logarithm = math.log(coefficient) - 0.15 * error - 1.5 * (error - before)
        coefficient = max(0.05, min(0.2, math.exp(logarithm)))
        before = error
        assert report.next_coefficient == pytest.approx(coefficient, rel=1e-12)
        bounds.add(report.at_bound)
    assert bounds >= {"low", "high"}


def test_nothing_moves_inside_the_band() -> None:
    reports, _ = run(BAND, [0.5, 0.31, 0.79, 0.3, 0.8])
    assert [r.move for r in reports] == [0.0] * 5
    below, above = (run(BAND, [0.5, h])[0][-1] for h in (0.2, 1.2))
    assert below.next_coefficient == pytest.approx(0.1 * (0.3 / 0.2) ** 1.65)
    assert above.next_coefficient == pytest.approx(0.1 * (0.8 / 1.2) ** 1.65)
    assert (below.error, above.error) == pytest.approx((-0.1, 0.4))


def test_a_band_is_approached_by_its_nearer_edge() -> None:
    reports, _ = run(replace(BAND, ramp_steps=10), [2.8, 2.0, 2.0])
    left = [math.exp(-t / 10) for t in range(3)]
    assert [r.low for r in reports] == pytest.approx([0.3 + 2.0 * x for x in left])
    assert [r.high for r in reports] == pytest.approx([0.8 + 2.0 * x for x in left])
    from_below, _ = run(replace(BAND, ramp_steps=10), [0.1, 0.1])
    assert from_below[0].low == pytest.approx(0.1)
    assert (inside := run(replace(BAND, ramp_steps=10), [0.5])[0][0]).low == 0.3
    assert inside.high == 0.8


def test_the_ramp_begins_with_the_first_measurement() -> None:
    state = initial_state(TARGET)
    for missing in (None, math.nan):
        state, report = update(TARGET, state, missing)
        assert math.isnan(report.low)
    state, first = update(TARGET, state, 2.0)
    assert first.low == pytest.approx(2.0)
    assert first.move == 0.0
    state, missing = update(TARGET, state, None)
    _, report = update(TARGET, state, 2.0)
    assert report.low == pytest.approx(0.5 + 1.5 * math.exp(-2 / 15))


def test_a_bound_is_left_with_the_first_step_back() -> None:
    """However long the coefficient stood there: there is no sum of errors to undo."""
    for long in (10, 500):
        reports, _ = run(replace(TARGET, ramp_steps=0), [0.05] * long + [0.5, 0.6])
        assert reports[long - 1].next_coefficient == 1.0
        assert reports[long].next_coefficient < 0.2
        assert reports[long].at_bound == ""


def test_a_run_resumed_from_another_kind_goes_on() -> None:
    """Its memory has nothing of this kind, and its coefficient may be 0."""
    other = ControllerState(0.0, 40, "low", 7, {"stepped": 0.0, "integral": 0.0})
    reports, state = run(TARGET, [0.1, 0.1], other)
    assert reports[0].next_coefficient == 1e-3  # the box's lower end
    assert state == ControllerState.from_dict(json.loads(json.dumps(state.to_dict())))


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, "controller.target"),
        ({"low": 0.3}, "controller.low controller.high"),
        ({"target": 0.5, "low": 0.3, "high": 0.8}, "controller.target controller.low"),
        ({"target": 0.0}, "controller.target 0"),
        ({"low": -0.1, "high": 0.8}, "controller.low -0.1"),
        ({"low": 0.9, "high": 0.8}, "controller.low 0.9 controller.high 0.8"),
        ({"target": 0.5, "smoothing": 1.0}, "controller.smoothing 1"),
        ({"target": 0.5, "min": 0.0}, "controller.min 0"),
        ({"target": 0.5, "warmup_steps": 3}, "controller.warmup_steps"),
        ({"target": 0.5, "step_size": 0.1}, "controller.step_size"),
        ({"target": 0.5, "ramp_steps": -1.0}, "controller.ramp_steps -1"),
        ({"target": 0.5, "min": 0.2}, "controller.initial 0.1 controller.min 0.2"),
        ({"target": 0.5, "measure": "half"}, "controller.measure"),
    ],
)
def test_wrong_settings_name_the_field(fields: dict[str, float], names: str) -> None:
    with pytest.raises(ValueError, match=naming(*names.split())):
        ControllerSettings("log_pi", 0.1, **fields)


def test_the_initial_coefficient_must_be_in_the_default_box() -> None:
    with pytest.raises(ValueError, match=naming("controller.initial", 0, "controller.min", 0.001)):
        replace(TARGET, initial=0.0, min=None)


def test_both_forms_of_the_aim_are_said() -> None:
    assert_names(describe(TARGET), 0.5, "nats")
    assert_names(describe(BAND), 0.3, 0.8, "nats")


@pytest.mark.parametrize("neutral", [0.02, 0.3])
@pytest.mark.parametrize("begin", [0.05, 3.0])
def test_a_policy_that_answers_by_factors_ends_on_target(neutral: float, begin: float) -> None:
    """ln H moves by 0.1 (ln lambda - ln neutral) per step: an integrator, unlike a policy that
    relaxes. A bonus held at its neutral coefficient does not change the entropy, so only a
    controller brings it to 0.5 nats."""
    entropy, state = begin, initial_state(TARGET)
    for _ in range(400):
        state, _ = update(TARGET, state, entropy)
        entropy *= math.exp(0.1 * math.log(state.coefficient / neutral))
        assert 1e-3 < entropy < 20
    assert entropy == pytest.approx(0.5, rel=1e-3)
    assert state.coefficient == pytest.approx(neutral, rel=1e-2)
