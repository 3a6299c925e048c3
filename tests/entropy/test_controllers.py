"""Coefficient controllers against the formula, worked by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from aent.entropy.controllers import (
    ControllerReport,
    ControllerSettings,
    ControllerState,
    initial_state,
    update,
)

BAND = ControllerSettings(
    kind="band", initial=0.01, low=0.3, high=0.5, step_size=0.1, min=0.0, max=0.02
)


def run(
    settings: ControllerSettings, entropies: list[float | None]
) -> tuple[list[ControllerReport], ControllerState]:
    state, reports = initial_state(settings), []
    for entropy in entropies:
        state, report = update(settings, state, entropy)
        reports.append(report)
    return reports, state


def test_band_follows_the_formula() -> None:
    # .01 - .1*(.25-.3) = .015; inside: stays; .015 - .1*(.6-.5) = .005; clipped to 0; back up
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


def test_a_state_survives_json_and_continues_alike() -> None:
    entropies: list[float | None] = [0.1, 0.2, None, 0.7, 0.45, 0.2]
    settings = replace(BAND, warmup_steps=1)
    whole, _ = run(settings, entropies)
    _, state = run(settings, entropies[:3])
    state = ControllerState.from_dict(json.loads(json.dumps(state.to_dict())))
    rest = []
    for entropy in entropies[3:]:
        state, report = update(settings, state, entropy)
        rest.append(report)
    assert rest == whole[3:]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "bend"}, "controller.kind is 'bend', but must be one of"),
        ({"low": 0.6}, "controller.low is 0.6, above controller.high 0.5"),
        ({"min": 0.03}, "controller.min is 0.03, above controller.max 0.02"),
        ({"min": 0.015}, "controller.initial is 0.01, below controller.min 0.015"),
        ({"initial": 0.05}, "controller.initial is 0.05, above controller.max 0.02"),
        ({"initial": math.nan}, "controller.initial is nan"),
        ({"low": None}, "controller.low is missing"),
        ({"step_size": -1.0}, "controller.step_size is -1.0"),
        ({"warmup_steps": -1}, "controller.warmup_steps is -1"),
    ],
)
def test_wrong_settings_name_the_field(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(BAND, **changes)
