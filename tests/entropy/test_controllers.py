"""Coefficient controllers against the formula, worked by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aent.entropy.controllers import (
    KINDS,
    ControllerReport,
    ControllerSettings,
    ControllerState,
    describe,
    initial_state,
    resumed,
    update,
)
from wording import naming

BAND = ControllerSettings(
    kind="band", initial=0.01, low=0.3, high=0.5, step_size=0.1, min=0.0, max=0.02
)


AUTOMATIC = ControllerSettings(
    kind="automatic_band", initial=0.01, low_fraction=0.25, high_fraction=0.5, reference_steps=2,
    step_size=0.1, min=0.0, max=0.5,
)  # fmt: skip
PI = ControllerSettings(
    kind="proportional_integral", initial=0.01, target=0.5, proportional_gain=0.05,
    integral_gain=0.02, min=0.0, max=0.3,
)  # fmt: skip
DUAL = ControllerSettings(kind="dual", initial=0.01, target=0.5, step_size=0.5, min=1e-4, max=0.3)
TARGET = ControllerSettings(
    kind="target", initial=0.0, target=0.5, step_size=0.001, min=0.0, max=0.005
)

LOG_PI = ControllerSettings(kind="log_pi", initial=0.05, target=0.5)
LOG_BAND = ControllerSettings(kind="log_pi", initial=0.05, low=0.3, high=0.8, ramp_steps=0)
OBSERVER = ControllerSettings(kind="observer", initial=0.05, target=0.5)
ALL = [
    ControllerSettings("constant", 0.01), BAND, AUTOMATIC, PI, DUAL, TARGET, LOG_PI, LOG_BAND,
    OBSERVER,
]  # fmt: skip


def run(
    controller: ControllerSettings, entropies: list[float | None]
) -> tuple[list[ControllerReport], ControllerState]:
    state, reports = initial_state(controller), []
    for entropy in entropies:
        state, report = update(controller, state, entropy)
        reports.append(report)
    return reports, state


def run_from(
    state: ControllerState, controller: ControllerSettings, entropies: list[float]
) -> list[float]:
    """The coefficients of the steps from this state on."""
    used = []
    for entropy in entropies:
        used.append(state.coefficient)
        state, _ = update(controller, state, entropy)
    return used


def test_band_follows_the_formula() -> None:
    # 0.01 - 0.1*(0.25-0.3) = 0.015; inside: stays; 0.015 - 0.1*(0.6-0.5) = 0.005; clipped to 0; up
    reports, state = run(BAND, [0.25, 0.4, 0.6, 0.9, 0.25])
    assert [r.coefficient for r in reports] == pytest.approx([0.01, 0.015, 0.015, 0.005, 0.0])
    after = [r.next_coefficient for r in reports]
    assert after == pytest.approx([0.015, 0.015, 0.005, 0.0, 0.005])
    assert [r.error for r in reports] == pytest.approx([-0.05, 0.0, 0.1, 0.4, -0.05])
    assert [r.move for r in reports] == pytest.approx([0.005, 0.0, -0.01, -0.005, 0.005])
    assert state.coefficient == after[-1]
    assert not any(r.skipped for r in reports)


def test_the_edges_of_the_band_belong_to_it() -> None:
    reports, _ = run(BAND, [0.3, 0.5])
    assert [r.move for r in reports] == [0.0, 0.0]
    assert [r.error for r in reports] == [0.0, 0.0]


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_first_update_after_the_warmup_consumes_that_steps_entropy(warmup: int) -> None:
    entropies: list[float | None] = [0.29, 0.28, 0.27, 0.26, 0.25]
    reports, _ = run(replace(BAND, warmup_steps=warmup), entropies)
    assert [r.next_coefficient for r in reports[:warmup]] == [0.01] * warmup
    first = entropies[warmup]
    assert first is not None
    assert reports[warmup].next_coefficient == pytest.approx(0.01 - 0.1 * (first - 0.3))
    assert reports[0].error == pytest.approx(-0.01)  # reported during the warm-up too


def test_bounds_are_reported_with_their_duration() -> None:
    reports, _ = run(BAND, [0.0, 0.0, 0.4, 0.52, 5.0, 5.0, 0.29])
    assert [r.at_bound for r in reports] == ["high", "high", "high", "", "low", "low", ""]
    assert [r.steps_at_bound for r in reports] == [1, 2, 3, 0, 1, 2, 0]


def test_going_from_one_bound_to_the_other_starts_the_count_anew() -> None:
    reports, _ = run(replace(BAND, step_size=10.0), [0.0, 0.0, 5.0])
    assert [(r.at_bound, r.steps_at_bound) for r in reports] == [
        ("high", 1), ("high", 2), ("low", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_no_number_changes_nothing(missing: float | None) -> None:
    _, before = run(BAND, [0.0])
    after, report = update(BAND, before, missing)
    assert after == replace(before, step=before.step + 1)
    assert report.skipped
    assert (report.coefficient, report.next_coefficient, report.move) == (0.02, 0.02, 0.0)
    assert math.isnan(report.error)
    assert (report.at_bound, report.steps_at_bound) == ("high", 1)


def test_a_skipped_step_counts_towards_the_warmup() -> None:
    reports, _ = run(replace(BAND, warmup_steps=2), [None, 0.2, 0.2])
    assert [r.next_coefficient for r in reports] == pytest.approx([0.01, 0.01, 0.02])


def test_constant_stays() -> None:
    reports, state = run(ControllerSettings("constant", 0.003), [0.0, 9.0, None])
    assert [r.next_coefficient for r in reports] == [0.003] * 3
    assert [r.error for r in reports[:2]] == [0.0, 0.0]
    assert [r.at_bound for r in reports] == [""] * 3
    assert state.coefficient == 0.003


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"kind": "bend"}, "controller.kind bend log_pi"),
        ({"low": 0.6}, "controller.low 0.6 controller.high 0.5"),
        ({"min": 0.03}, "controller.min 0.03 controller.max 0.02"),
        ({"min": 0.015}, "controller.initial 0.01 controller.min 0.015"),
        ({"initial": 0.05}, "controller.initial 0.05 controller.max 0.02"),
        ({"initial": math.nan}, "controller.initial nan"),
        ({"low": None, "max": None}, "controller.kind band controller.low controller.max"),
        ({"step_size": -1.0}, "controller.step_size -1"),
        ({"warmup_steps": -1}, "controller.warmup_steps -1"),
        ({"target": 1.0}, "controller.target controller.kind band"),
    ],
)
def test_wrong_settings_name_the_field(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=naming(*names.split())):
        replace(BAND, **changes)


@pytest.mark.parametrize("controller", [PI, DUAL, TARGET, LOG_PI, OBSERVER], ids=lambda c: c.kind)
def test_no_entropy_is_negative_and_no_target_may_be(controller: ControllerSettings) -> None:
    with pytest.raises(ValueError, match=naming("controller.target", -0.5, 0)):
        replace(controller, target=-0.5)


def test_who_needs_controllers_alone_does_not_import_torch() -> None:
    """A recipe's check and a replay answer at once."""
    code = "import sys, aent.cli.main, aent.checks.recipe, aent.launch.launcher\n"
    code += "import aent.analysis.replay, aent.analysis.suggest\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


# -- the other kinds, by hand


def test_an_automatic_band_is_measured_first() -> None:
    """Reference (2 + 4) / 2 = 3: the band is [0.75, 1.5]; NaN counts for nothing."""
    entropies: list[float | None] = [2.0, None, 4.0, 0.65, 1.0, 1.6]
    reports, _ = run(AUTOMATIC, entropies)
    assert [math.isnan(r.low) for r in reports] == [True] * 3 + [False] * 3
    assert (reports[3].low, reports[3].high) == (0.75, 1.5)
    assert [r.move for r in reports] == pytest.approx([0, 0, 0, 0.01, 0, -0.01])
    assert [r.error for r in reports[3:]] == pytest.approx([-0.1, 0, 0.1])
    late, _ = run(replace(AUTOMATIC, warmup_steps=4), entropies)  # measured in the warm-up too
    assert [r.move for r in late] == pytest.approx([0, 0, 0, 0, 0, -0.01])


def test_aers_rule_is_an_automatic_band_of_one_point() -> None:
    """alpha <- max(0, alpha + eta (tau H_0 - H)), alpha 0 at first (docs/algorithms.md)."""
    aer = ControllerSettings(
        kind="automatic_band", initial=0.0, low_fraction=0.4, high_fraction=0.4, reference_steps=1,
        step_size=1e-3, min=0.0, max=1.0,
    )  # fmt: skip
    entropies = [3.0, 2.0, 1.0, 0.5, 0.9, 1.5, 2.5, 1.1]
    alpha, want = 0.0, []
    for entropy in entropies:
        alpha = max(0.0, alpha + 1e-3 * (0.4 * 3.0 - entropy))
        want.append(alpha)
    reports, _ = run(aer, entropies)
    assert [r.next_coefficient for r in reports] == pytest.approx(want)
    assert max(want) > 0


def test_a_reference_asked_for_shorter_after_a_resume_is_what_was_measured() -> None:
    _, state = run(replace(AUTOMATIC, reference_steps=10), [2.0, 4.0, 3.0])
    _, report = update(AUTOMATIC, state, 0.65)
    assert (report.low, report.high) == (0.75, 1.5)


def test_proportional_integral_is_the_sum_of_both_parts() -> None:
    reports, state = run(PI, [0.3, 0.4])
    # errors -0.2, -0.1: integral 0.01 + 0.02*0.2 = 0.014, + 0.02*0.1 = 0.016
    assert reports[0].next_coefficient == pytest.approx(0.014 + 0.05 * 0.2)
    assert reports[1].next_coefficient == pytest.approx(0.016 + 0.05 * 0.1)
    assert state.memory == {"integral": pytest.approx(0.016)}


def test_dual_steps_on_the_logarithm() -> None:
    reports, _ = run(DUAL, [0.3, 0.5, 0.9, -1e9, 1e9])
    up = 0.01 * math.exp(0.5 * 0.2)
    after = [up, up, up * math.exp(-0.5 * 0.4), 0.3, 1e-4]
    assert [r.next_coefficient for r in reports] == pytest.approx(after)
    assert [r.at_bound for r in reports] == ["", "", "", "high", "low"]


def test_target_is_applied_only_below_it_and_never_latched_at_zero() -> None:
    reports, state = run(TARGET, [0.4, 0.4, 0.4, 0.6, 0.4, 0.5, 0.4, 9.0, 9.0, 9.0, 9.0, 0.4])
    stepped = [1, 2, 3, 2, 3, 3, 4, 3, 2, 1, 0, 1]  # thousandths; at the target itself: no step
    applied = [1, 2, 3, 0, 3, 0, 4, 0, 0, 0, 0, 1]
    assert [r.next_coefficient * 1000 for r in reports] == pytest.approx(applied)
    assert [r.at_bound for r in reports] == [""] * 10 + ["low", ""]  # of what is stepped
    assert state.memory["stepped"] * 1000 == pytest.approx(stepped[-1])


@pytest.mark.parametrize("controller", ALL, ids=lambda c: c.kind)
def test_every_kind_says_what_it_does(controller: ControllerSettings) -> None:
    words = describe(controller)
    kind = KINDS[controller.kind]
    for name in [*kind.needs, *kind.defaults]:
        assert f"{getattr(controller, name):g}" in words
    assert f"{controller.initial:g}" in words


# -- for every kind, whatever the entropies

ENTROPIES = st.lists(
    st.one_of(
        st.floats(0, 3),
        st.floats(-1e6, 1e6),
        st.sampled_from([None, math.nan, math.inf, -math.inf]),
    ),
    min_size=1,
    max_size=40,
)
CONTROLLERS = st.builds(
    lambda controller, warmup: (
        replace(controller, warmup_steps=warmup) if KINDS[controller.kind].waits else controller
    ),
    st.sampled_from(ALL),
    st.integers(0, 5),
)


def box_of(controller: ControllerSettings) -> tuple[float, float]:
    low = controller.initial if controller.min is None else controller.min
    return low, controller.initial if controller.max is None else controller.max


@given(CONTROLLERS, ENTROPIES)
def test_the_box_is_never_left(
    controller: ControllerSettings, entropies: list[float | None]
) -> None:
    low, high = box_of(controller)
    for report in run(controller, entropies)[0]:
        assert low <= report.next_coefficient <= high
        assert report.move == report.next_coefficient - report.coefficient
        assert (report.steps_at_bound > 0) == (report.at_bound != "")


def test_another_constant_and_another_box_apply_from_the_resume_on() -> None:
    saved = ControllerState(0.3, 7, "high", 2, {"log_entropy": -1.0})
    constant = resumed(ControllerSettings("constant", 0.01), saved)
    assert constant == replace(saved, coefficient=0.01, memory={})
    assert run_from(constant, ControllerSettings("constant", 0.01), [0.4, 0.4]) == [0.01, 0.01]
    assert resumed(BAND, saved).coefficient == BAND.max
    assert resumed(replace(LOG_PI, min=0.4, initial=0.5), saved).coefficient == 0.4
    assert resumed(LOG_PI, saved) == saved
    applied = ControllerState(0.0, 7, memory={"stepped": 0.004})  # above its target
    assert resumed(replace(TARGET, min=0.001, initial=0.001), applied) == applied


@pytest.mark.parametrize("settings", [PI, TARGET], ids=lambda s: s.kind)
def test_a_kind_begins_with_the_coefficient_of_the_kind_before_it(
    settings: ControllerSettings,
) -> None:
    state, _ = update(settings, ControllerState(0.003, 7), 0.4999999)
    assert state.coefficient == pytest.approx(0.003, abs=0.0011)


@pytest.mark.parametrize("other", [LOG_PI, OBSERVER, TARGET, BAND], ids=lambda s: s.kind)
@pytest.mark.parametrize("settings", [PI, TARGET, LOG_PI, OBSERVER], ids=lambda s: s.kind)
def test_a_kind_that_comes_back_knows_nothing_of_its_first_time(
    settings: ControllerSettings, other: ControllerSettings
) -> None:
    """But for the first entropy, from which an aim is approached."""
    if settings.kind == other.kind:
        return
    _, state = run(settings, [0.9, 0.2, 0.7])
    for entropy in (0.4, 0.6):
        state, _ = update(other, resumed(other, state), entropy)
    back = resumed(settings, state)
    shared = {k: v for k, v in back.memory.items() if k.startswith(("first_", "reference_"))}
    assert back.memory == shared
    assert resumed(settings, back) == back
    once, _ = update(settings, back, 0.45)
    assert resumed(settings, once) == once  # its own is kept


def test_a_state_that_was_saved_before_there_were_logarithmic_kinds_is_read() -> None:
    text = """{"coefficient": 0.014, "step": 3, "at_bound": "", "steps_at_bound": 0,
               "memory": {"integral": 0.012}}"""
    state = ControllerState.from_dict(json.loads(text))
    assert state == ControllerState(0.014, 3, memory={"integral": 0.012})
    after, _ = update(PI, state, 0.5)  # on target: only the integral
    assert after.coefficient == 0.012


@given(CONTROLLERS, ENTROPIES, st.data())
def test_a_state_saved_in_mid_run_continues_alike(
    controller: ControllerSettings, entropies: list[float | None], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(entropies)))
    whole, end = run(controller, entropies)
    _, state = run(controller, entropies[:cut])
    state = ControllerState.from_dict(json.loads(json.dumps(state.to_dict())))
    rest = []
    for entropy in entropies[cut:]:
        state, report = update(controller, state, entropy)
        rest.append(report)
    assert repr(rest) == repr(whole[cut:])  # NaN equals NaN here, and nothing is rounded
    assert state == end


@given(CONTROLLERS, ENTROPIES, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_more_entropy_never_makes_the_coefficient_larger(
    controller: ControllerSettings, entropies: list[float | None], one: float, other: float
) -> None:
    _, state = run(controller, entropies)
    less, more = sorted([one, other])
    after_less = update(controller, state, less)[1].next_coefficient
    after_more = update(controller, state, more)[1].next_coefficient
    # but for rounding: log_pi's first aim is the entropy itself, met up to the last bits
    assert after_more <= after_less * (1 + 1e-9)


@given(CONTROLLERS, ENTROPIES, st.sampled_from([None, math.nan, math.inf, -math.inf]))
def test_no_measurement_changes_nothing_but_the_step(
    controller: ControllerSettings, entropies: list[float | None], missing: float | None
) -> None:
    _, before = run(controller, entropies)
    after, report = update(controller, before, missing)
    assert after == replace(before, step=before.step + 1)
    assert report.skipped
    assert report.next_coefficient == report.coefficient == before.coefficient


# -- in a closed loop


def closed_loop(
    controller: ControllerSettings, pull: list[float], gain: float = 4.0
) -> list[ControllerReport]:
    """A policy whose entropy relaxes (a fifth of the way a step) to gain * coefficient - pull +
    0.5: learning pulls it down, the bonus up."""
    entropy, state, reports = 0.5, initial_state(controller), []
    for force in pull:
        entropy += 0.2 * (gain * state.coefficient + 0.5 - force - entropy)
        state, report = update(controller, state, entropy)
        reports.append(report)
    return reports


@given(st.floats(0.05, 1.1))
@settings(max_examples=25)
def test_the_integral_removes_the_steady_error(pull: float) -> None:
    """A pull within the limits (4 * 0.3 = 1.2 nats) ends on target; with P alone it stays below."""
    whole = closed_loop(PI, [pull] * 600)[-1]
    assert abs(whole.error) < 1e-6
    assert whole.coefficient == pytest.approx(pull / 4, abs=1e-6)
    without = closed_loop(replace(PI, initial=0.0, integral_gain=0.0), [pull] * 600)[-1]
    assert without.error == pytest.approx(-pull / (1 + 4 * 0.05), abs=1e-6)


def test_the_integral_does_not_wind_up() -> None:
    """200 steps of a pull beyond the limits, then none: the coefficient leaves its bound with the
    first error of the other sign, and soon is where the target needs it (0)."""
    reports = closed_loop(PI, [3.0] * 200 + [0.0] * 100)
    assert reports[199].steps_at_bound > 150
    released = next(t for t in range(200, 300) if reports[t].error > 0)
    assert reports[released - 1].coefficient == 0.3
    assert reports[released].next_coefficient < 0.3
    assert reports[-1].error == pytest.approx(0, abs=0.01)
