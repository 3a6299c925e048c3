"""What a comparison's tables and curves hold, run by run: plain functions of what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation, fmean

from aent.analysis.intervals import Difference, compare, first_reach, last_quarter, smooth
from aent.compare.collect import Comparison, Run
from aent.entropy.controllers import held_interval
from aent.tracking.recorded import Series

WINDOW = 10  # steps: one step's mean reward is too noisy to draw, or to say that it was reached
Band = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One arm's: the mean over its seeds, the smallest and the largest."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(series: Sequence[Series]) -> Curve:
    """Of one arm's runs, at the steps that every one of them has."""
    steps = sorted(set.intersection(*(set(s) for s in series)))
    values = [[s[step] for s in series] for step in steps]
    return Curve(
        [float(step) for step in steps],
        [fmean(v) for v in values],
        [min(v) for v in values],
        [max(v) for v in values],
    )


def curves(
    comparison: Comparison, of_run: Callable[[Run], Series], window: int = 1
) -> dict[str, Curve]:
    """A curve per arm, each run's series smoothed over ``window`` steps first."""
    found = {}
    for arm in comparison.arms:
        runs = comparison.of(arm).values()
        found[arm] = curve([smooth(of_run(run), window) for run in runs])
    return {arm: c for arm, c in found.items() if c.x}


def metric(name: str) -> Callable[[Run], Series]:
    """A run's series of this name."""
    return lambda run: run.metrics.get(name, {})


def pass_at_1(run: Run) -> Series:
    """Of the held-out questions, by the number of steps trained before."""
    return {s: fmean(e.pass_at(1).values()) for s, e in run.evaluations.items()}


def pass_at_ks(run: Run, steps: int | None = None) -> Series:
    """pass@k by k, of the evaluation after so many steps; None: the last one."""
    if not run.evaluations:
        return {}
    evaluation = run.evaluations[max(run.evaluations) if steps is None else steps]
    return {k: fmean(evaluation.pass_at(k).values()) for k in run.ks}


def band(run: Run) -> Band | None:
    """Where the controller's aim counts as held, at the last step; None without one."""
    low, high = (run.metrics.get(f"controller/{side}", {}) for side in ("low", "high"))
    return held_interval(low[max(low)], high[max(high)]) if low and high else None


def common_band(comparison: Comparison) -> Band | None:
    """The band of every run that has one, where it is the same for all."""
    bands = {b for run in comparison.runs if (b := band(run)) is not None}
    return bands.pop() if len(bands) == 1 else None


def share_in_band(run: Run, others: Band | None) -> float | None:
    """Share of steps whose entropy, of the controller's measure, lay in the run's band
    (``held_interval``); in ``others``, where it has none of its own."""
    low, high = (run.metrics.get(f"controller/{side}", {}) for side in ("low", "high"))
    entropy = run.measured_entropy
    if low:
        bands = {s: held_interval(low[s], high[s]) for s in entropy if s in low}
        return fmean(float(a <= entropy[s] <= b) for s, (a, b) in bands.items())
    if others is None:
        return None
    return fmean(float(others[0] <= h <= others[1]) for h in entropy.values())


def relative_noise(run: Run) -> float | None:
    """Standard error of one step's entropy over that entropy, the mean of the last quarter; None
    where none is known."""
    error, entropy = run.metrics.get("policy/entropy_error", {}), run.measured_entropy
    shares = {s: error[s] / h for s, h in entropy.items() if s in error and h > 0}
    return last_quarter(shares) if shares else None


def prediction(run: Run) -> float | None:
    """Correlation, over the steps, of the change of entropy that a step's gradients predict
    (``gradient/predicted_policy`` and ``..._bonus``) with that which the next step shows; None of
    fewer than three, or where one of them does not vary."""
    policy, bonus, change = (
        run.metrics.get(name, {})
        for name in ("gradient/predicted_policy", "gradient/predicted_bonus", "entropy/change")
    )
    pairs = [
        (p + bonus[s], change[s + 1]) for s, p in policy.items() if s in bonus and s + 1 in change
    ]
    if len(pairs) < 3:
        return None
    try:
        return correlation(*zip(*pairs))
    except StatisticsError:
        return None


@dataclass(frozen=True)
class Cost:
    """What a run had spent when it reached a reward."""

    steps: int
    seconds: float
    tokens: float


def cost_to_reach(run: Run, reward: float) -> Cost | None:
    """At the end of the first step at which the mean of ``WINDOW`` steps' rewards was that high."""
    step = first_reach(run.metrics["reward/mean"], reward, WINDOW)
    if step is None:
        return None

    def spent(series: Mapping[int, float]) -> float:
        return sum(value for s, value in series.items() if s <= step)

    return Cost(step + 1, spent(run.seconds), spent(run.metrics["tokens/total"]))


def reward_difference(arm: Mapping[int, Run], baseline: Mapping[int, Run]) -> Difference:
    """Of the mean reward over the last quarter of the steps, over the seeds that both have."""
    reward = metric("reward/mean")
    return compare(
        [
            [last_quarter(reward(arm[seed])) - last_quarter(reward(baseline[seed]))]
            for seed in sorted(arm.keys() & baseline.keys())
        ]
    )


def pass_difference(
    arm: Mapping[int, Run], baseline: Mapping[int, Run], k: int
) -> Difference | None:
    """Of pass@k after the last step, over seeds and the questions that both have answered."""
    pairs = []
    for seed in sorted(arm.keys() & baseline.keys()):
        if not (arm[seed].evaluations and baseline[seed].evaluations):
            continue
        one, other = (
            run.evaluations[max(run.evaluations)].pass_at(k) for run in (arm[seed], baseline[seed])
        )
        both = sorted(one.keys() & other.keys())
        if both:
            pairs.append([one[q] - other[q] for q in both])
    return compare(pairs) if pairs else None
