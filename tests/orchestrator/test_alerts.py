"""The steps that give an alert."""

import math

import pytest

from aent.orchestrator.alerts import Alerts
from aent.recipe.operation import AlertsSection
from wording import assert_names

QUIET = {
    "reward/mean": 0.5, "reward/judge_errors": 0.0, "tokens/response": 640.0,
    "response/length_mean": 10.0, "controller/at_bound": 0.0, "controller/steps_at_bound": 0.0,
    "time/total": 10.0, "time/trainer_idle": 5.0, "time/engines_idle": 5.0,
}  # fmt: skip


def told(steps: list[dict[str, float]], lead_s: int | None = None, **settings: float) -> list[str]:
    """The alerts of these steps, which are quiet except for the given values."""
    alerts = Alerts(AlertsSection(**settings), lead_s)
    return [str(a) for step, own in enumerate(steps) for a in alerts.look(step, QUIET | own)]


def test_a_quiet_run_is_not_spoken_of():
    assert told([{}] * 30, lead_s=300) == []


@pytest.mark.parametrize(
    ("own", "names"),
    [
        ({"reward/mean": math.nan}, ["reward", "nan"]),
        ({"reward/mean": math.inf}, ["reward", "inf"]),
        ({"reward/judge_errors": 7.0}, [7, 64, "reward 0"]),
        ({"controller/at_bound": -1.0, "controller/steps_at_bound": 20.0}, ["lower", 20]),
        ({"controller/at_bound": 1.0, "controller/steps_at_bound": 21.0}, ["upper", 21]),
        ({"time/total": 20.1, "time/train": 15.0}, ["20.1 s", "10.0 s"]),
    ],
)
def test_a_step_is_told_once_and_again_when_it_is_over(own, names):
    begun, over = told([{}] * 6 + [own] * 2 + [{}] * 2)
    assert_names(begun, "since step 6", *names)
    assert_names(over, "over with step 8", "since step 6", *names)


def test_what_is_below_its_bound_or_turned_off_is_not_told():
    assert told([{}] * 6 + [{"time/total": 20.0}]) == []
    assert told([{}] * 4 + [{"time/total": 99.0}]) == []  # too few to compare it with
    assert told([{}] * 6 + [{"reward/judge_errors": 6.0}]) == []
    bound = {"controller/at_bound": 1.0, "controller/steps_at_bound": 19.0}
    assert told([bound]) == []
    loud = {"time/total": 99.0, "time/engines_idle": 98.0, "controller/steps_at_bound": 50.0}
    off = {"at_bound_steps": 0, "slow_step": 0, "idle_share": 0}
    assert told([{}] * 6 + [loud] * 6, **off) == []


def test_evaluations_and_checkpoints_make_no_step_slow():
    between = {"time/evaluate": 60.0, "time/checkpoint": 20.0, "time/publish": 5.0}
    assert told([{}] * 6 + [between | {"time/total": 95.0}]) == []


def test_idle_shares_are_those_of_five_steps():
    waits = {"time/engines_idle": 10.0}
    (begun,) = told([{}] * 4 + [waits] * 5)
    assert_names(begun, "since step 8", "engines", "100%")
    (begun,) = told([{}] * 4 + [{"time/trainer_idle": 8.0}] * 3, idle_share=0.6)
    assert_names(begun, "since step 5", "trainer", "62%")  # (5 + 5 + 5 + 8 + 8) / 50


def test_a_job_whose_signal_comes_too_late_for_a_step_and_a_checkpoint_is_told():
    saved = {"time/total": 150.0, "time/checkpoint": 120.0, "time/publish": 20.0}
    assert told([{}, saved], lead_s=210) == []  # 60 s of it are SAVE_MARGIN's
    (begun,) = told([{}, saved], lead_s=209)
    assert_names(begun, "since step 1", "10 s", "140 s", "209 s", "--signal=B:USR1@240")
