"""Rank 0's record of the run: MLflow, tables, the figure, the display, the summary."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aent.checkpoint.lead import own_lead
from aent.data.rollout import Rollout
from aent.estimate.memory import GIB, estimate
from aent.evaluation.heldout import EvaluationResult
from aent.models.pieces import Pieces
from aent.orchestrator import entities
from aent.orchestrator.alerts import KEYS, Alerts
from aent.orchestrator.compute_metrics import compute_metrics
from aent.orchestrator.records import (
    StepDone,
    control_metrics,
    evaluation_metrics,
    grader_metrics,
    step_metrics,
    suite_metrics,
    time_metrics,
)
from aent.orchestrator.source_metrics import heldout_by_source, source_metrics
from aent.orchestrator.tables import heldout_rows, sample_rows
from aent.orchestrator.token_metrics import (
    Mix,
    by_class,
    by_position,
    distinct_answers,
    split_change,
    standard_error,
)
from aent.orchestrator.token_record import TokenRecord, shown, token_record
from aent.recipe.schema import Recipe
from aent.runtime import profiling
from aent.runtime.environment import device_kind
from aent.runtime.log import log
from aent.tasks.mixture import by_source
from aent.tracking import heatmap, journal
from aent.tracking.display import Display, StepLine, summary
from aent.tracking.journal import JOURNAL_FILE, Point
from aent.tracking.machines import SYSTEM
from aent.tracking.tracker import Tracker

# metrics of which every step's value is needed after a resume
KEPT = frozenset({"reward/mean", "controller/in_band", "evaluation/accuracy", *KEYS})


@dataclass
class Report:
    """Records what happens, for people to read."""

    recipe: Recipe
    run_dir: Path
    tracker: Tracker
    display: Display
    pieces: Pieces
    progress: Callable[[], None] = lambda: None  # called at every sign of progress
    rewards: list[float] = field(default_factory=list)  # mean of each step
    evaluations: dict[int, float] = field(default_factory=dict)  # accuracy by steps trained
    seconds: dict[str, float] = field(default_factory=dict)  # per phase, over the run
    in_band: list[float] = field(default_factory=list)  # 1 if the step's was in the band
    filled: bool = False  # whether the log says that a curriculum's window has too few questions
    mix: Mix | None = None  # of the last step's tokens
    alerts: Alerts = field(init=False)

    def __post_init__(self) -> None:
        self.alerts = Alerts(self.recipe.alerts, own_lead())

    def resume(self, step: int) -> None:
        """Read what earlier starts recorded about the run's first ``step`` steps."""
        path = self.run_dir / JOURNAL_FILE
        series: dict[str, dict[int, float]] = {}
        for point in journal.read(path) if path.exists() else ():
            before = point.step < step + (point.key == "evaluation/accuracy")
            if before and not point.key.startswith(SYSTEM) and _outlives_step(point, step):
                series.setdefault(point.key, {})[point.step] = point.value
        self.rewards, self.in_band = (
            [value for _, value in sorted(series.get(key, {}).items())]
            for key in ("reward/mean", "controller/in_band")
        )
        self.evaluations = series.get("evaluation/accuracy", {})
        for done in sorted(series.get("time/total", {})):  # alerts of those steps are not repeated
            self.alerts.look(done, {k: v[done] for k, v in series.items() if done in v})
        self.mix = Mix.read({k: v[step - 1] for k, v in series.items() if step - 1 in v})

    def step(
        self,
        done: StepDone,
        rollout: Rollout,
        noted: Mapping[str, float],
        seconds: Mapping[str, float],
        engines_busy_s: float,
        probe_gap: float,
        load: Mapping[str, float],
    ) -> None:
        """Log the step, keep its samples, draw the figure, show a line.

        noted: metrics of the questions that a curriculum chose. seconds: per phase. engines_busy_s:
        mean time in which an engine had requests. probe_gap: mismatch between engine and trainer at
        the last weight update, nats. load: the engines' own measurements, by metric.
        """
        recipe, batch = self.recipe, done.batch
        record = token_record(batch, done.driven.terms.advantages, done.results, recipe.measured)
        metrics = step_metrics(recipe, done, rollout) | control_metrics(done.memory)
        metrics |= grader_metrics(rollout.verdicts) | self._entropy_metrics(record, metrics)
        metrics |= source_metrics(rollout, recipe.task.finished_only) | dict(noted)
        readers = {name: part.graders[0].kind for name, part in by_source(recipe.task).items()}
        metrics["response/distinct_answers"] = distinct_answers(rollout, readers)
        metrics["policy/probe_gap"] = probe_gap
        metrics |= time_metrics(done.batch, seconds, engines_busy_s) | dict(load)
        metrics |= compute_metrics(done, seconds)
        self.tracker.log(done.step, metrics)
        self._alert(done.step, metrics)
        self._say_filled(done.step, noted)
        every = recipe.tracking.samples_every
        if every and done.step % every == 0:
            means = record.response_means()
            self.tracker.log_samples(done.step, sample_rows(rollout, means))
            entities.log_traces(self.tracker, recipe, done.step, rollout, means)
            title, measure = f"{recipe.name}, step {done.step}", recipe.measured.replace("_", " ")
            self.tracker.log_page(
                done.step,
                lambda: heatmap.page(shown(record, rollout, self.pieces, title, measure)),
            )
        self._keep_profiles()
        self.tracker.refresh_figure()
        self.rewards.append(metrics["reward/mean"])
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value
        self.display.step(
            StepLine(
                done.step,
                metrics["reward/mean"],
                metrics[f"policy/{self.recipe.measured}"],
                done.report.coefficient,
                done.batch.tokens.numel(),
                dict(seconds),
                sum(r.update_skipped for r in done.results),
            )
        )

    def _keep_profiles(self) -> None:
        """Send MLflow the steps' profiles that are written by now, from every rank."""
        if self.recipe.profile.steps:
            self.tracker.log_files(profiling.FOLDER, partial(profiling.finished, self.run_dir))

    def _alert(self, step: int, metrics: Mapping[str, float]) -> None:
        for alert in self.alerts.look(step, metrics):
            over = alert.over is not None
            self.display.message(f"aent: alert {alert}", logging.INFO if over else logging.WARNING)
            self.tracker.tag(alert.tag, str(alert))

    def _say_filled(self, step: int, noted: Mapping[str, float]) -> None:
        """Say once that a curriculum's window has too few questions, if it does."""
        share = noted.get("curriculum/outside_share", 0.0)
        if share > 0 and not self.filled:
            self.filled = True
            self.display.message(
                f"task.curriculum: too few questions lie in the window: {share:.0%} of those of "
                f"step {step} are the ones nearest to it (curriculum/outside_share)"
            )

    def _entropy_metrics(self, record: TokenRecord, step: Mapping[str, float]) -> dict[str, float]:
        """Where the step's entropy is, what changed it, its standard error, and for how long it has
        been in the band."""
        mix = by_class(record, self.pieces.token_class)
        found = mix.metrics() | by_position(record)
        if self.mix is not None:
            found |= split_change(self.mix, mix)
        self.mix = mix
        if math.isfinite(error := standard_error(record)):
            found["policy/entropy_error"] = error
        if "controller/in_band" in step:
            self.in_band.append(step["controller/in_band"])
            found["controller/time_in_band"] = sum(self.in_band) / len(self.in_band)
        return found

    def suite(self, step: int, name: str, result: EvaluationResult) -> None:
        """Log and show a suite's score after ``step`` steps."""
        self.tracker.log(step, suite_metrics(name, result))
        samples = self.recipe.evaluation.samples
        questions = len(result.answers) // samples
        self.display.message(
            f"{name} after {step} steps: {result.accuracy:.3f} +- {result.standard_error:.3f} "
            f"({questions} questions x {samples})"
        )

    def heldout(self, step: int, result: EvaluationResult) -> None:
        """Log and show the held-out score after ``step`` steps, and keep the answers."""
        self.evaluations[step] = result.accuracy
        self.tracker.log(step, evaluation_metrics(result) | heldout_by_source(result))
        self.tracker.log_samples(step, heldout_rows(result), "heldout")
        questions = len(result.answers) // self.recipe.evaluation.samples
        self.display.message(
            f"held-out accuracy after {step} steps: {result.accuracy:.3f} "
            f"+- {result.standard_error:.3f} ({questions} questions)"
        )

    def finish(self, peaks: Sequence[int]) -> None:
        """Write the summary of a run that ended well, and set MLflow's run to FINISHED.

        peaks: peak memory of each rank, bytes.
        """
        self.display.stop()
        self._keep_profiles()
        gib = {f"memory/rank_{rank}_peak_gib": peak / GIB for rank, peak in enumerate(peaks)}
        self.tracker.log(self.recipe.steps - 1, gib)
        entities.log_policy(self.tracker, self.recipe, self.run_dir / "policy")
        self.tracker.finish("FINISHED", on_progress=self.progress)
        on_card = device_kind() == "cuda"
        estimated = [
            f"{(rank.allocated if on_card else rank.total) / GIB:.2f}"
            for rank in estimate(self.recipe).per_rank
        ]
        places = {
            "policy": str(self.run_dir / "policy"),
            "figure": str(self.run_dir / "figure.png"),
            "look": self.tracker.look,
            "memory": f"{', '.join(f'{peak:.2f}' for peak in gib.values())} GiB at most, by rank "
            f"(estimated {', '.join(estimated)})",
        }
        log.info(summary(self.rewards, self.evaluations, self.seconds, places))

    def suspend(self) -> None:
        """Send what MLflow does not have yet; its run stays open for the start that continues."""
        self.display.stop()
        self.tracker.finish(None)


def _outlives_step(point: Point, step: int) -> bool:
    """Whether a run that continues with ``step`` needs this value of a step before it: all values
    of 100,000 steps would take gigabytes."""
    return point.key in KEPT or point.step == step - 1
