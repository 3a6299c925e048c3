"""A run's numbers that need no store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aent.analysis.intervals import compare
from aent.compare import collect, numbers, report
from aent.compare.collect import Comparison, Evaluation, Run
from aent.recipe.load import resolve
from wording import assert_names


def run_of(low: float, high: float) -> Any:
    aim = {
        "controller/low": {0: low, 1: low, 2: low},
        "controller/high": {s: high for s in (0, 1, 2)},
    }
    return SimpleNamespace(metrics=aim, measured_entropy={0: 1.0, 1: 0.75, 2: 0.4})


def test_a_target_counts_as_held_in_an_interval_around_it() -> None:
    """[0.3, 0.8] around 0.5; without, no run with a target would have a step in its band."""
    assert numbers.share_in_band(run_of(0.5, 0.5), {}) == pytest.approx(2 / 3)
    assert numbers.bands(run_of(0.5, 0.5))[2] == pytest.approx((0.3, 0.8))
    assert numbers.share_in_band(run_of(0.5, 0.9), {}) == pytest.approx(1 / 3)
    assert numbers.bands(run_of(0.5, 0.9))[2] == (0.5, 0.9)


def ramp(*targets: float) -> Any:
    aim = dict(enumerate(targets))
    return SimpleNamespace(metrics={"controller/low": aim, "controller/high": aim})


def test_an_arm_without_a_band_is_compared_with_that_of_the_others_at_each_step() -> None:
    """A ramp's last aim still has a trace of the run's first entropy, which differs by seed."""
    without: Any = SimpleNamespace(metrics={}, measured_entropy={0: 1.0, 1: 0.75, 2: 0.75})
    runs: Any = SimpleNamespace(runs=[ramp(2, 1, 0.5001), without, ramp(3, 1, 0.5003)])
    bands = numbers.common_bands(runs)
    assert bands[2] == pytest.approx((0.30012, 0.80032))
    assert numbers.share_in_band(without, bands) == pytest.approx(2 / 3)  # not in 1.5 to 4
    others: Any = SimpleNamespace(runs=[ramp(2, 1, 0.5), ramp(2, 1, 0.6)])
    assert numbers.common_bands(others) == {}
    assert numbers.share_in_band(without, {}) is None


def predicting(policy: list[float], change: list[float]) -> Any:
    """A run whose bonus predicts 1 at each step, and whose first step has no change."""
    steps = range(len(policy))
    return SimpleNamespace(
        metrics={
            "gradient/predicted_policy": dict(zip(steps, policy)),
            "gradient/predicted_bonus": dict.fromkeys(steps, 1.0),
            "entropy/change": {s: c for s, c in zip(steps, change) if s},
        }
    )


def test_a_prediction_is_held_against_the_step_after_it() -> None:
    """The change of step s + 1 is twice what step s predicts; without the shift, it is not."""
    policy = [1.0, -2.0, 0.5, 3.0, -1.0]
    change = [0.0, *(2 * (p + 1) for p in policy[:-1])]
    assert numbers.prediction(predicting(policy, change)) == pytest.approx(1)
    mirrored = [-c for c in change]
    assert numbers.prediction(predicting(policy, mirrored)) == pytest.approx(-1)


@pytest.mark.parametrize("change", [[0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 1.0, 1.0]])
def test_too_few_steps_or_none_that_differ_say_nothing(change: list[float]) -> None:
    assert numbers.prediction(predicting([1.0] * len(change), change)) is None
    without: Any = SimpleNamespace(metrics={}, measured_entropy={0: 1.0})
    assert numbers.prediction(without) is None
    collapsed = predicting([-3.0, -2.0, *[0.0] * 20], [0.0, -2.0, -1.0, *[1e-4] * 19])
    collapsed.metrics["gradient/predicted_bonus"] = dict.fromkeys(range(22), 0.0)
    assert numbers.prediction(collapsed) is None
    assert numbers.relative_noise(without) is None


def test_answers_before_the_last_step_do_not_stand_in_for_the_last_ones() -> None:
    """MLflow may have a run's end without its last files."""
    data = {"name": "arm", "steps": 20, "model": {}, "controller": {"initial": 0.0}}
    recipe = resolve(data, "test", [])
    right = Evaluation({"1?": 1}, samples=2)
    runs = [Run("arm", seed, recipe, {}, {0: right, 10 * (2 - seed): right}) for seed in (0, 1)]
    kept, (sentence,) = collect._with_last_answers(runs)
    assert [sorted(run.evaluations) for run in kept] == [[0, 20], []]
    assert_names(sentence, "arm", "seed 1", "mlflow-sync")


def test_too_few_seeds_are_those_of_the_arms_that_have_too_few() -> None:
    compared = [
        report._Compared(arm, "reward", compare({s: [0.2 + s / 9] for s in range(seeds)}), 0.03)
        for arm, seeds in (("whole", 6), ("short", 5))
    ]
    limits = list(report._limits(Comparison([], []), [], compared, "none"))
    (sentence,) = (text for text in limits if "p-value" in text)
    assert_names(sentence, "5 seeds", "short", 0.0625)
    assert "whole" not in sentence
    (sentence,) = (t for t in report._limits(Comparison([], []), [], compared[1:], "none")
                   if "p-value" in t)  # fmt: skip
    assert "short" not in sentence
