"""Differences between arms, against formulas and against scipy."""

from __future__ import annotations

import itertools
import math
import operator
import random
from statistics import fmean, pvariance

import numpy as np
import pytest
from scipy.stats import permutation_test

from aent.analysis import intervals
from aent.analysis.intervals import (
    bootstrap,
    compare,
    first_reach,
    joint_sign_flips,
    last_quarter,
    sign_flips,
)
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


def of_seeds(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_one_difference_is_not_corrected():
    values = [0.3, -0.1, 0.2, 0.25, 0.4, 0.1, 0.15]
    assert joint_sign_flips([of_seeds(values)], ["reward"]) == [sign_flips(values)]
    assert joint_sign_flips([], []) == []
    assert joint_sign_flips([of_seeds([0.0, 0.0])], ["reward"]) == [1.0]


def test_several_differences_are_corrected_step_by_step():
    """Against loops over all signs: the largest against the largest, and so on, of one outcome."""
    source = random.Random(5)
    rows = [[shift + source.gauss(0, 1) for _ in range(7)] for shift in (0.1, 1.5, 0.8, 0.0)]
    every = list(itertools.product((1, -1), repeat=7))
    means = [[abs(fmean(map(operator.mul, signs, row))) for row in rows] for signs in every]
    own = [abs(fmean(row)) for row in rows]
    left, expected, largest = [0, 1, 2, 3], {}, 0.0
    while left:
        place = max(left, key=lambda index: own[index])
        reached = [max(of_signs[k] for k in left) >= own[place] - 1e-12 for of_signs in means]
        largest = expected[place] = max(largest, fmean(reached))
        left.remove(place)
    found = joint_sign_flips([of_seeds(row) for row in rows], ["reward"] * 4)
    assert found == pytest.approx([expected[place] for place in range(4)])
    alone = [sign_flips(row) for row in rows]
    assert all(map(operator.ge, found, alone))
    assert max(map(operator.sub, found, alone)) > 0.01


def test_an_outcome_with_large_numbers_does_not_hide_another():
    """Scales are of outcomes; and a difference that all seeds agree on keeps the least p, however
    many others there are. A seed that an arm lacks counts for the others."""
    sure = of_seeds([0.20, 0.25, 0.21, 0.30, 0.22, 0.24])
    noise = [of_seeds([k + 50.0, -60.0, 40.0 - k, -30.0, 20.0, -10.0]) for k in range(20)]
    short = {seed: sure[seed] for seed in range(5)}
    found = joint_sign_flips([sure, short, *noise], ["reward", "reward", *["tokens"] * 20])
    assert found[0] == pytest.approx(2 / 64)
    assert found[1] == pytest.approx(4 / 64)
    assert min(found[2:]) > 0.2


def test_what_is_said_of_a_difference():
    sure = [0.2, 0.25, 0.21, 0.3, 0.22, 0.24]

    def said(values: list[float], p: float | None = None) -> str:
        found = compare({seed: [value] for seed, value in enumerate(values)})
        return found.verdict(found.p if p is None else p)

    assert said(sure) == "higher"
    assert said([-d for d in sure]) == "lower"
    few = said(sure[:3])
    assert few not in ("higher", "lower")
    assert_names(few, "higher", "seeds")
    apart = said([*sure[:2], -0.3])
    assert said([0.0] * 3) == apart
    assert "higher" not in apart
    assert "lower" not in apart
    uneven = [0.1, 0.1, 0.1, 0.1, 0.1, -0.005]
    assert_names(said(uneven), "higher", "seeds")
    assert said(uneven) not in ("higher", few)
    assert_names(said(sure, 0.06), "higher", "correction")


def test_where_a_run_ends_and_when_it_got_there():
    rewards = {step: step / 10 for step in range(8)}
    assert last_quarter(rewards) == pytest.approx(0.65)
    assert first_reach(rewards, 0.35, window=2) == 4  # (0.3 + 0.4) / 2
    assert first_reach(rewards, 0.0, window=4) == 3  # no mean of four before
    assert first_reach(rewards, 0.7, window=2) is None
