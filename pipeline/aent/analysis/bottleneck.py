"""Where a run's seconds went, and one sentence that names the bottleneck: the part of a step that
must become faster first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from aent.recipe.schema import Recipe
from aent.tracking.recorded import Series

BETWEEN = ("evaluate", "checkpoint", "publish", "restore")  # phases that happen only in some steps
BUBBLE, LONG_TAIL, FULL = 0.2, 3.0, 0.95  # thresholds above which a cause is named
TOLD = (  # metrics from which a cause is read
    "response/length_max", "response/length_mean", "engine/kv_use", "engine/preemptions",
    "compute/bubble_share", "compute/train_mfu", "time/trainer_idle",
    "time/engines_idle",
)  # fmt: skip
NAMES = {
    "generate": "the engines' generation",
    "grade": "grading and other work of sampling outside the engines",
    "ahead": "waiting for responses that are sampled ahead",
    "score": "scoring",
    "train": "training",
    "sync": "the transfer of weights",
    "record": "rank 0's record of the step",
}
PHASES = tuple(name for name in NAMES if name not in ("generate", "grade", "ahead"))
METRICS = (  # all metrics that are read
    *TOLD, "time/total", "time/sample", "time/engines_busy",
    *(f"time/{phase}" for phase in (*PHASES, *BETWEEN)),
)  # fmt: skip


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step: means over a run's steps, except for the first, which warms up."""

    total: float  # of a step, without phases that happen only in some
    parts: Mapping[str, float]  # by a key of ``NAMES`` or the phase; they do not overlap
    means: Mapping[str, float]  # of the metrics in ``TOLD`` that are recorded
    idle: Mapping[str, float]  # share of all seconds, by role

    @property
    def largest(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def seconds(recipe: Recipe, metrics: Mapping[str, Series]) -> Seconds | None:
    """None if no step's time is known.

    If sampling does not run ahead, it is split: the time while the engines had requests, and the
    rest. Steps with an evaluation, which is also the engines' work, count only if there are no
    others.
    """
    steps = sorted(metrics.get("time/total", {}))
    steps = steps[1:] or steps
    if not steps:
        return None
    evaluations = metrics.get("time/evaluate", {})
    steps = [step for step in steps if not evaluations.get(step)] or steps

    def mean(name: str) -> float:
        return fmean(metrics.get(name, {}).get(step, 0.0) for step in steps)

    parts = {phase: mean(f"time/{phase}") for phase in PHASES if metrics.get(f"time/{phase}")}
    sample = mean("time/sample")
    if recipe.rollout.max_staleness:
        parts["ahead"] = sample
    elif not metrics.get("time/engines_busy"):  # from an older run
        parts["generate"] = sample
    else:
        busy = mean("time/engines_busy") - mean("time/evaluate")
        parts["generate"] = min(sample, max(busy, 0.0))
        parts["grade"] = sample - parts["generate"]
    total = mean("time/total") - sum(mean(f"time/{phase}") for phase in BETWEEN)
    means = {name: mean(name) for name in TOLD if metrics.get(name)}
    idle = {
        role: means[f"time/{role}_idle"] / mean("time/total")
        for role in ("trainer", "engines")
        if f"time/{role}_idle" in means
    }
    return Seconds(total, parts, means, idle)


def sentence(recipe: Recipe, metrics: Mapping[str, Series]) -> str:
    """Name the bottleneck, its share of a step, and the cause that the metrics suggest."""
    found = seconds(recipe, metrics)
    if found is None or found.total <= 0:
        return "No step's time is recorded."
    name = found.largest
    took = found.parts[name]
    return (
        f"The bottleneck is {NAMES[name]}: {took:.1f} of a step's {found.total:.1f} s "
        f"({took / found.total:.0%}){_cause(recipe, name, found)}."
    )


def _cause(recipe: Recipe, name: str, found: Seconds) -> str:
    """A clause that names the cause, or an empty string."""
    means = found.means
    if name == "train":
        if means.get("compute/bubble_share", 0.0) > BUBBLE:
            return f"; its pipeline stages wait {means['compute/bubble_share']:.0%} of that time"
        if "compute/train_mfu" in means:
            return f", at an MFU of {means['compute/train_mfu']:.2f}"
        rollout = recipe.rollout
        if not rollout.max_staleness and not rollout.colocated and "engines" in found.idle:
            return (
                f"; the engines are idle {found.idle['engines']:.0%} of the time: "
                "rollout.max_staleness would use it"
            )
    if name in ("generate", "ahead"):
        mean = means.get("response/length_mean", 0.0)
        if means.get("engine/preemptions", 0.0) > 0 or means.get("engine/kv_use", 0.0) > FULL:
            return "; the engines' key-value cache is full (rollout.engine)"
        longest = means.get("response/length_max", 0.0)
        if mean and longest > LONG_TAIL * mean:
            return f"; the longest response is {longest / mean:.1f} times as long as the mean"
        if "trainer" in found.idle:
            return f"; the trainer is idle {found.idle['trainer']:.0%} of the time"
    if name == "grade":
        return f" (task.judge_processes={recipe.task.judge_processes})"
    return ""


def lines(recipe: Recipe, metrics: Mapping[str, Series]) -> Iterator[str]:
    """The lines of ``aent report`` for one run: one for each part of a step, then the sentence."""
    found = seconds(recipe, metrics)
    if found is not None and found.total > 0:
        for name, took in sorted(found.parts.items(), key=lambda part: -part[1]):
            yield f"{took:9.2f} s {took / found.total:6.1%}  {NAMES[name]}"
        for role, share in found.idle.items():
            yield f"{'idle':>11} {share:6.1%}  {role}"
    yield sentence(recipe, metrics)
