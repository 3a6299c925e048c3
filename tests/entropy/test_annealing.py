"""Targets that move over the run, in every kind of controller."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aent.entropy.controllers import ControllerSettings, describe, initial_state, update
from entropy.test_controllers import ALL, AUTOMATIC, BAND, run
from wording import assert_names, naming

AIMED = [settings for settings in ALL if settings.kind != "constant"]


def annealed(settings: ControllerSettings) -> ControllerSettings:
    return replace(settings, anneal_to=0.5, anneal_steps=4)


@pytest.mark.parametrize("settings", AIMED, ids=lambda s: f"{s.kind}-{s.target}")
def test_the_aim_goes_linearly_to_its_share_and_stays(settings: ControllerSettings) -> None:
    entropies: list[float | None] = [1.0] * 8
    still, moving = (run(s, entropies)[0] for s in (settings, annealed(settings)))
    for step, (before, now) in enumerate(zip(still, moving)):
        factor = max(0.5, 1 - step / 8)
        assert now.low == pytest.approx(factor * before.low, nan_ok=True)
        assert now.high == pytest.approx(factor * before.high, nan_ok=True)
    assert moving[-1].low == pytest.approx(0.5 * still[-1].low)


def test_the_law_sees_the_moved_aim() -> None:
    """At 0.26 nats, below [0.3, 0.5] by 0.04 at first; over [0.15, 0.25] by 0.01 in the end."""
    reports, _ = run(annealed(replace(BAND, min=0, max=1)), [0.26] * 5)
    assert [r.error for r in reports] == pytest.approx([-0.04, -0.0025, 0, 0, 0.01])
    assert [r.move for r in reports] == pytest.approx([0.004, 0.00025, 0, 0, -0.001])


def test_steps_count_through_skipped_measurements_and_warm_up() -> None:
    settings = annealed(replace(AUTOMATIC, warmup_steps=1))
    reports, state = run(settings, [1.0, None, 1.0, 1.0])
    # the mean of the two measured is 1 nat; step 3 has come three quarters of the way
    assert (reports[3].low, reports[3].high) == pytest.approx((0.25 * 0.625, 0.5 * 0.625))
    assert state.step == 4


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"kind": "constant"}, ["anneal_to", "anneal_steps"]),
        ({"anneal_steps": None}, ["anneal_to", "anneal_steps"]),
        ({"anneal_to": None}, ["anneal_steps", "anneal_to"]),
        ({"anneal_to": 0.0}, ["anneal_to"]),
        ({"anneal_steps": 0}, ["anneal_steps"]),
    ],
)
def test_what_is_wrong_is_named(settings: dict, fields: list[str]) -> None:
    values = {"initial": 0.1, "anneal_to": 0.5, "anneal_steps": 9} | settings
    if values.get("kind") is None:
        values |= {"kind": "log_pi", "target": 0.5}
    with pytest.raises(ValueError, match=naming(*(f"controller.{f}" for f in fields))):
        ControllerSettings(**values)


def test_it_is_told_before_a_run() -> None:
    assert_names(describe(annealed(BAND)), 0.5, 4, "linearly")
    assert "linearly" not in describe(BAND)


@pytest.mark.parametrize("settings", AIMED, ids=lambda s: f"{s.kind}-{s.target}")
def test_a_coefficient_at_0_wakes(settings: ControllerSettings) -> None:
    """Whatever left it there (a kind before a resume, an aim far below): entropy under the aim
    brings it back."""
    low = replace(settings, min=0.0) if settings.kind in ("band", "automatic_band") else settings
    state = replace(initial_state(low), coefficient=0.0)
    for entropy in (1.0, 1.0, *[0.01] * 20):
        state, _ = update(low, state, entropy)
    assert state.coefficient > 0
