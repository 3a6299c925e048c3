"""Differences between arms, against formulas and against scipy."""

from __future__ import annotations

import math
import random
from statistics import fmean, pvariance

import numpy as np
import pytest
from scipy.stats import permutation_test

from aent.analysis import intervals
from aent.analysis.intervals import bootstrap, compare, first_reach, last_quarter, sign_flips
from wording import assert_names


def test_of_three_seeds_the_interval_is_their_range():
    """Each single seed makes up 1 draw in 27, more than the 2.5% beyond an end."""
    assert bootstrap([[0.3], [-0.1], [0.2]]) == pytest.approx((-0.1, 0.3))


def test_the_interval_has_the_spread_of_seeds_and_of_problems_within_them():
    """Resampling n seeds and within each its p problems: the draws' variance is that of the seeds'
    means, plus the mean over seeds of (variance of its problems) / p, all by n."""
    source = random.Random(3)
    seeds = [[centre + source.gauss(0, 0.5) for _ in range(20)] for centre in range(12)]
    means = [fmean(s) for s in seeds]
    spread = pvariance(means) + fmean(pvariance(s) / len(s) for s in seeds)
    half = 1.96 * math.sqrt(spread / len(seeds))
    low, high = bootstrap(seeds, draws=40_000)
    assert low == pytest.approx(fmean(means) - half, abs=0.05 * half)
    assert high == pytest.approx(fmean(means) + half, abs=0.05 * half)


def test_problems_alone_have_their_own_spread():
    problems = [float(i % 5 == 0) for i in range(400)]
    low, high = bootstrap([problems])
    half = 1.96 * math.sqrt(0.2 * 0.8 / 400)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half), abs=0.004)


@pytest.mark.parametrize("values", [[0.2, 0.1, 0.4], [0.3, -0.1, 0.2, 0.25, 0.4, 0.1, 0.15]])
def test_sign_flips_are_scipys_paired_permutation_test(values):
    reference = permutation_test(
        (values,), lambda x, axis: np.mean(x, axis), permutation_type="samples", vectorized=True,
        n_resamples=np.inf, alternative="two-sided",
    )  # fmt: skip
    assert sign_flips(values) == pytest.approx(reference.pvalue)


def test_beyond_all_of_them_sign_flips_are_drawn(monkeypatch):
    values = [0.3, -0.1, 0.2, 0.25, -0.2, 0.1, 0.15, -0.05]
    exact = sign_flips(values)
    monkeypatch.setattr(intervals, "EXACT_SEEDS", 2)
    assert sign_flips(values) == pytest.approx(exact, abs=0.02)


def test_what_is_said_of_a_difference():
    sure = [[0.2], [0.25], [0.21], [0.3], [0.22], [0.24]]
    assert compare(sure).verdict == "higher"
    assert compare([[-d] for (d,) in sure]).verdict == "lower"
    few = compare(sure[:3]).verdict
    assert few not in ("higher", "lower")
    assert_names(few, "higher", "seeds")
    apart = compare([*sure[:2], [-0.3]]).verdict
    assert compare([[0.0]] * 3).verdict == apart
    assert "higher" not in apart
    assert "lower" not in apart
    uneven = [[0.1], [0.1], [0.1], [0.1], [0.1], [-0.005]]
    assert_names(compare(uneven).verdict, "higher", "seeds")
    assert compare(uneven).verdict not in ("higher", few)


def test_where_a_run_ends_and_when_it_got_there():
    rewards = {step: step / 10 for step in range(8)}
    assert last_quarter(rewards) == pytest.approx(0.65)
    assert first_reach(rewards, 0.35, window=2) == 4  # (.3 + .4) / 2
    assert first_reach(rewards, 0.0, window=4) == 3  # no mean of four before
    assert first_reach(rewards, 0.7, window=2) is None
