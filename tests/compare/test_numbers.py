"""Numbers of a run that need no store."""

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
    """[.3, .8] around .5; without, no run with a target would have a step in its band."""
    assert numbers.share_in_band(run_of(0.5, 0.5), None) == pytest.approx(2 / 3)
    assert numbers.band(run_of(0.5, 0.5)) == pytest.approx((0.3, 0.8))
    assert numbers.share_in_band(run_of(0.5, 0.9), None) == pytest.approx(1 / 3)
    assert numbers.band(run_of(0.5, 0.9)) == (0.5, 0.9)
