"""Differences between arms, and their uncertainty: few seeds, many problems, paired throughout.

A pair is one seed: all arms get the same prompts in the same order, sample with the same seeds, and
answer the same held-out questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from aent.tracking.recorded import Series

DRAWS = 10_000  # of the bootstrap; also of sign flips if there are more than this
LEVEL = 0.05
EXACT_SEEDS = 13  # up to this number, all 2^n sign flips are computed


@dataclass(frozen=True)
class Difference:
    """Mean difference between an arm and the baseline, over seeds (and problems)."""

    mean: float
    low: float  # 95% interval of the bootstrap
    high: float
    p: float  # of the sign flips, of this difference alone
    means: Mapping[int, float]  # by seed

    @property
    def seeds(self) -> int:
        return len(self.means)

    def verdict(self, p: float) -> str:
        """``higher`` or ``lower`` if interval and sign flips agree; else why neither holds.

        p: corrected for the number of differences."""
        if self.low <= 0 <= self.high:
            return "cannot be told apart"
        word = "higher" if self.mean > 0 else "lower"
        if p <= LEVEL:
            return word
        if least_p(self.seeds) > LEVEL:
            return f"{word} here; too few seeds to conclude"
        if self.p <= LEVEL:
            return f"{word} here; not after the correction for the number of differences"
        return f"{word} here; the seeds do not agree enough"


def compare(differences: Mapping[int, Sequence[float]]) -> Difference:
    """Of one outcome: for each seed, the differences (arm minus baseline) of its problems; a single
    one, where the outcome has no problems."""
    means = {seed: fmean(of_seed) for seed, of_seed in differences.items()}
    low, high = bootstrap(list(differences.values()))
    values = list(means.values())
    return Difference(fmean(values), low, high, sign_flips(values), means)


def bootstrap(
    differences: Sequence[Sequence[float]],
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile interval (95% by default) of the mean over seeds of the mean over a seed's
    problems.

    Each draw takes as many seeds as there are, with replacement, and from each of them as many
    problems as it has, with replacement and independently. Problems are resampled within
    their seed because each seed holds out other problems.
    """
    random = np.random.default_rng(seed)
    count = len(differences)
    taken = random.integers(count, size=(draws, count))
    means = np.empty(taken.shape)
    for index, of_seed in enumerate(differences):
        values, here = np.asarray(of_seed, dtype=float), taken == index
        problems = random.integers(len(values), size=(int(here.sum()), len(values)))
        means[here] = values[problems].mean(1)
    low, high = np.quantile(means.mean(1), (level / 2, 1 - level / 2))
    return float(low), float(high)


def sign_flips(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference this large if each seed's sign were a coin flip.

    Fisher's paired randomization test: the share of all sign assignments whose mean is at least as
    far from 0 (beyond ``EXACT_SEEDS`` seeds, of ``DRAWS`` random ones and the observed one). It
    assumes nothing about the spread, and cannot be smaller than ``least_p``.
    """
    values = np.asarray(differences, dtype=float)
    means = np.abs((_signs(len(values)) * values).mean(1))
    return float((means >= abs(values.mean()) * (1 - 1e-12)).mean())


def _signs(count: int) -> np.ndarray:
    """[assignments, count]: the signs that are looked at; in the first row all are 1."""
    if count <= EXACT_SEEDS:
        return np.array(list(itertools.product((1, -1), repeat=count)))
    drawn = np.random.default_rng(0).choice((1, -1), size=(DRAWS, count))
    return np.vstack([np.ones(count, dtype=int), drawn])


def joint_sign_flips(
    differences: Sequence[Mapping[int, float]], outcomes: Sequence[str]
) -> list[float]:
    """The p-values of several differences, corrected for their number, in their order.

    Each seed has one sign for all of its differences, and the largest of them is compared with the
    largest under other signs; then the largest of the others, and so on (step-down maxT: Westfall
    and Young, Resampling-Based Multiple Testing, 1993; Romano and Wolf, JASA 100, 2005). Unlike
    Holm's correction it can reach ``least_p`` for any number of differences. It assumes that the
    differences of a seed together are distributed symmetrically around 0 if they are not real.

    differences: each the means by seed; seeds may be missing. outcomes: of each; differences of one
    outcome share a scale, the root mean square of all of its values, which no sign changes.
    """
    if not differences:
        return []
    seeds = sorted(set[int]().union(*differences))
    values = np.array([[of_seed.get(seed, 0.0) for seed in seeds] for of_seed in differences])
    counts = np.array([len(of_seed) for of_seed in differences])
    squares: dict[str, list[float]] = {}
    for outcome, of_seed in zip(outcomes, differences, strict=True):
        squares.setdefault(outcome, []).extend(value**2 for value in of_seed.values())
    # an outcome without any difference: 0 / 1
    scales = np.array([fmean(squares[outcome]) ** 0.5 or 1.0 for outcome in outcomes])
    sizes = np.abs(_signs(len(seeds)) @ values.T) / (counts * scales)
    corrected, largest = [0.0] * len(differences), 0.0
    order = np.argsort(-sizes[0], kind="stable")
    for place, index in enumerate(order):
        others = sizes[:, order[place:]].max(1)
        p = float((others >= sizes[0, index] * (1 - 1e-12)).mean())
        largest = max(largest, p)
        corrected[index] = largest
    return corrected


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several contrasts, corrected for their number, in the same order.

    Holm (Scand. J. Statist. 6, 1979): the i-th smallest of m is multiplied by m - i + 1, is at most
    1, and is not below those before it.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = largest
    return corrected


def least_p(seeds: int) -> float:
    """The smallest p-value that sign flips can give with this number of seeds."""
    return 2.0 ** (1 - seeds)


def last_quarter(series: Series) -> float:
    """Mean over the last quarter of the recorded steps."""
    steps = sorted(series)
    return fmean(series[s] for s in steps[-max(1, len(steps) // 4) :])


def smooth(series: Series, window: int) -> Series:
    """Mean of each step and the ``window`` - 1 recorded before it (fewer at the start)."""
    steps = sorted(series)
    values = [series[s] for s in steps]
    return {s: fmean(values[max(0, i + 1 - window) : i + 1]) for i, s in enumerate(steps)}


def first_reach(series: Series, target: float, window: int) -> int | None:
    """The first step at which a mean over ``window`` whole steps is ``target`` or more."""
    smoothed, steps = smooth(series, window), sorted(series)
    return next((s for s in steps[window - 1 :] if smoothed[s] >= target), None)
