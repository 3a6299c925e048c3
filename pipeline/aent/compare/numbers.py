"""The numbers of a comparison's tables and curves, as plain functions of the recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation, fmean

from aent.analysis.intervals import Difference, compare, first_reach, last_quarter, smooth
from aent.compare.collect import Comparison, Run
from aent.entropy.controllers import held_interval
from aent.tracking.recorded import Series

WINDOW = 10  # steps: the mean reward of one step is too noisy to draw or to compare
SAME_BAND = 0.01  # by this share, bands of several runs may differ and count as one
Band = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One arm's curve: mean, smallest and largest over its seeds."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(series: Sequence[Series]) -> Curve:
    """The curve of one arm's runs, at the steps that all of them have."""
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
    """The run's series with this name."""
    return lambda run: run.metrics.get(name, {})


def pass_at_1(run: Run) -> Series:
    """Accuracy on the held-out questions, by the number of steps trained before."""
    return {s: fmean(e.pass_at(1).values()) for s, e in run.evaluations.items()}


def pass_at_ks(run: Run, steps: int | None = None) -> Series:
    """pass@k by k, of the evaluation after that many steps; None: the last one."""
    if not run.evaluations:
        return {}
    evaluation = run.evaluations[max(run.evaluations) if steps is None else steps]
    return {k: fmean(evaluation.pass_at(k).values()) for k in run.ks}


def bands(run: Run) -> dict[int, Band]:
    """The interval in which each step's entropy counts as held; empty without an aim."""
    low, high = (run.metrics.get(f"controller/{side}", {}) for side in ("low", "high"))
    return {step: held_interval(low[step], high[step]) for step in low if step in high}


def common_bands(comparison: Comparison) -> dict[int, Band]:
    """By step, the mean of the bands of all runs that have one; empty if their last ones differ by
    more than ``SAME_BAND``. (The aim of a ramp still has a trace of the run's first entropy.)"""
    found = [of_run for run in comparison.runs if (of_run := bands(run))]
    last = [of_run[max(of_run)] for of_run in found]
    if any(max(side) > min(side) * (1 + SAME_BAND) for side in zip(*last)):
        return {}
    common = {}
    for step in sorted(set[int]().union(*found)):
        lows, highs = zip(*(of_run[step] for of_run in found if step in of_run))
        common[step] = (fmean(lows), fmean(highs))
    return common


def share_in_band(run: Run, others: Mapping[int, Band]) -> float | None:
    """Share of steps whose entropy, as the controller measures it, lay in the step's band
    (``bands``); in that of ``others`` if the run has none; None if those are none either."""
    entropy, band = run.measured_entropy, bands(run) or others
    inside = [band[s][0] <= h <= band[s][1] for s, h in entropy.items() if s in band]
    return fmean(inside) if inside else None


def relative_noise(run: Run) -> float | None:
    """Standard error of a step's entropy as a share of it, mean over the last quarter; None if
    unknown."""
    error, entropy = run.metrics.get("policy/entropy_error", {}), run.measured_entropy
    shares = {s: error[s] / h for s, h in entropy.items() if s in error and h > 0}
    return last_quarter(shares) if shares else None


def prediction(run: Run) -> float | None:
    """Correlation, over the steps, between the change of entropy that a step's gradients predict
    (``gradient/predicted_policy`` and ``..._bonus``) and the change that the next step shows. Steps
    without any gradient predict nothing: in a collapsed run, the one or two that have one would
    make a large correlation. None for fewer than three steps, or if one of the two does not vary.
    """
    policy, bonus, change = (
        run.metrics.get(name, {})
        for name in ("gradient/predicted_policy", "gradient/predicted_bonus", "entropy/change")
    )
    pairs = [
        (p + bonus[s], change[s + 1])
        for s, p in policy.items()
        if s in bonus and s + 1 in change and (p, bonus[s]) != (0, 0)
    ]
    if len(pairs) < 3:
        return None
    try:
        return correlation(*zip(*pairs))
    except StatisticsError:
        return None


def reward_to_reach(comparison: Comparison, baseline: str) -> float:
    """Halfway between the baseline's reward and that of the best arm (means over the last quarter).

    The reward of the baseline itself says nothing if its policy collapsed: one answer to everything
    earns it within a few steps, in every arm.
    """
    rewards = {
        arm: fmean(last_quarter(r.metrics["reward/mean"]) for r in comparison.of(arm).values())
        for arm in comparison.arms
    }
    return (rewards[baseline] + max(rewards.values())) / 2


@dataclass(frozen=True)
class Cost:
    """What a run had spent when it reached a reward."""

    steps: int
    seconds: float
    tokens: float


def cost_to_reach(run: Run, reward: float) -> Cost | None:
    """The cost at the end of the first step whose mean reward over ``WINDOW`` steps was that
    high."""
    step = first_reach(run.metrics["reward/mean"], reward, WINDOW)
    if step is None:
        return None

    def spent(series: Mapping[int, float]) -> float:
        return sum(value for s, value in series.items() if s <= step)

    return Cost(step + 1, spent(run.seconds), spent(run.metrics["tokens/total"]))


def reward_difference(arm: Mapping[int, Run], baseline: Mapping[int, Run]) -> Difference:
    """Difference of the mean reward over the last quarter of the steps; seeds that both arms
    have."""
    reward = metric("reward/mean")
    return compare(
        {
            seed: [last_quarter(reward(arm[seed])) - last_quarter(reward(baseline[seed]))]
            for seed in sorted(arm.keys() & baseline.keys())
        }
    )


def pass_difference(
    arm: Mapping[int, Run], baseline: Mapping[int, Run], k: int
) -> Difference | None:
    """Difference of pass@k after the last step; seeds and questions that both arms have."""
    pairs = {}
    for seed in sorted(arm.keys() & baseline.keys()):
        if not (arm[seed].evaluations and baseline[seed].evaluations):
            continue
        one, other = (
            run.evaluations[max(run.evaluations)].pass_at(k) for run in (arm[seed], baseline[seed])
        )
        both = sorted(one.keys() & other.keys())
        if both:
            pairs[seed] = [one[q] - other[q] for q in both]
    return compare(pairs) if pairs else None
