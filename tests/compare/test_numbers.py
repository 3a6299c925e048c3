"""A run's numbers that need no store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aent.compare import numbers


def run_of(low: float, high: float) -> Any:
    aim = {
        "controller/low": {0: low, 1: low, 2: low},
        "controller/high": {s: high for s in (0, 1, 2)},
    }
    return SimpleNamespace(metrics=aim, measured_entropy={0: 1.0, 1: 0.75, 2: 0.4})


def test_a_target_counts_as_held_in_an_interval_around_it() -> None:
    """[0.3, 0.8] around 0.5; without, no run with a target would have a step in its band."""
    assert numbers.share_in_band(run_of(0.5, 0.5), None) == pytest.approx(2 / 3)
    assert numbers.band(run_of(0.5, 0.5)) == pytest.approx((0.3, 0.8))
    assert numbers.share_in_band(run_of(0.5, 0.9), None) == pytest.approx(1 / 3)
    assert numbers.band(run_of(0.5, 0.9)) == (0.5, 0.9)


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
    assert numbers.relative_noise(without) is None
