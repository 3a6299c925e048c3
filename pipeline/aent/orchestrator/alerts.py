"""Alerts: what an on-call engineer should know during a run, in the log and as tags in MLflow.

An alert begins with the first step in which its condition holds, and ends with the first in which
it does not; ``aent status`` shows both. Bounds: the recipe's section ``alerts``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from aent.checkpoint.lead import SAVING, Took
from aent.recipe.operation import AlertsSection

BEFORE = 20  # earlier steps that a step's time is compared with
FEWEST = 5  # fewest of them for a comparison
WINDOW = 5  # steps over which idle shares are means
IDLE = {"trainer": "time/trainer_idle", "engines": "time/engines_idle"}
# phases that happen only in some steps, and do not count as a step's own time
BETWEEN = ("time/evaluate", *SAVING, "time/restore")
UNJUDGED = 0.1  # share of a step's responses without a grade above which there is an alert
READ = (
    "reward/mean",
    "reward/judge_errors",
    "tokens/response",
    "response/length_mean",
    "controller/at_bound",
    "controller/steps_at_bound",
    "time/total",
)
KEYS = (*READ, *IDLE.values(), *BETWEEN)  # all metrics that are read


@dataclass(frozen=True)
class Alert:
    """One that begins with a step, or ends with it (``over``)."""

    kind: str
    first: int  # step with which it began
    text: str
    over: int | None = None  # step with which it is over

    @property
    def tag(self) -> str:
        """The tag of MLflow's run."""
        return f"aent.alert.{self.kind}"

    def __str__(self) -> str:
        if self.over is None:
            return f"since step {self.first}: {self.text}"
        return f"over with step {self.over}, since step {self.first}: {self.text}"


@dataclass
class Alerts:
    """Looks at each step's metrics."""

    settings: AlertsSection
    lead_s: int | None = None  # between Slurm's signal and the time limit; None: not a job of ours
    _steps: dict[int, dict[str, float]] = field(default_factory=dict)  # the newest ones
    _active: dict[str, Alert] = field(default_factory=dict)

    def look(self, step: int, metrics: Mapping[str, float]) -> list[Alert]:
        """The alerts that begin or end with this step."""
        self._steps[step] = {key: metrics[key] for key in KEYS if key in metrics}
        for old in [number for number in self._steps if number < step - BEFORE]:
            del self._steps[old]
        told = self._told(step)
        changed = []
        for kind, text in told.items():
            if kind not in self._active:
                self._active[kind] = Alert(kind, step, text)
                changed.append(self._active[kind])
        for kind in [kind for kind in self._active if kind not in told]:
            begun = self._active.pop(kind)
            changed.append(Alert(kind, begun.first, begun.text, over=step))
        return changed

    def _told(self, step: int) -> dict[str, str]:
        """The alerts of the newest step, by kind."""
        newest, told = self._steps[step], {}
        if text := _reward_fault(newest):
            told["reward"] = text
        steps = newest.get("controller/steps_at_bound", 0.0)
        if self.settings.at_bound_steps and steps >= self.settings.at_bound_steps:
            bound = "lower" if newest["controller/at_bound"] < 0 else "upper"
            told["coefficient"] = (
                f"the coefficient has been at its {bound} bound for {steps:.0f} steps: the "
                "controller has no room left (docs/controllers.md)"
            )
        if text := self._slow(step):
            told["slow_step"] = text
        for who, key in IDLE.items():
            share = self._share(key)
            if self.settings.idle_share and share is not None and share > self.settings.idle_share:
                told[f"idle_{who}"] = f"idle share of the {who}: {share:.0%} of {WINDOW} steps"
        if text := self._too_late():
            told["signal"] = text
        return told

    def _slow(self, step: int) -> str | None:
        """If the newest step's own time is above the bound times the median before it."""
        before = [_own_s(values) for number, values in self._steps.items() if number != step]
        if not self.settings.slow_step or len(before) < FEWEST:
            return None
        took, median = _own_s(self._steps[step]), statistics.median(before)
        if took <= self.settings.slow_step * median:
            return None
        return f"a step of {took:.1f} s, the median of those before it is {median:.1f} s"

    def _share(self, key: str) -> float | None:
        """This metric's share of the newest steps' time; None if there are too few steps."""
        newest = list(self._steps.values())[-WINDOW:]
        total = sum(values.get("time/total", 0.0) for values in newest)
        if len(newest) < WINDOW or total == 0:
            return None
        return sum(values.get(key, 0.0) for values in newest) / total

    def _too_late(self) -> str | None:
        """If Slurm signals the job later than a step and a checkpoint need."""
        series = {
            key: {step: values[key] for step, values in self._steps.items() if key in values}
            for key in ("time/total", *SAVING)
        }
        took = Took.of(series)
        if self.lead_s is None or took is None or took.fits(self.lead_s):
            return None
        return took.describe(self.lead_s, every=0)


def _reward_fault(values: Mapping[str, float]) -> str | None:
    """If the mean reward is not finite, or many responses have no grade: a grader's value that is
    not finite counts as its error, and the response gets 0."""
    if not math.isfinite(reward := values.get("reward/mean", 0.0)):
        return f"the mean reward is {reward}"
    errors = values.get("reward/judge_errors", 0.0)
    responses = values.get("tokens/response", 0.0) / values.get("response/length_mean", 1.0)
    if errors <= UNJUDGED * responses:
        return None
    return (
        f"{errors:.0f} of {responses:.0f} responses could not be graded (a grader failed, or "
        "returned no finite number): they get reward 0"
    )


def _own_s(values: Mapping[str, float]) -> float:
    return values.get("time/total", 0.0) - sum(values.get(key, 0.0) for key in BETWEEN)
