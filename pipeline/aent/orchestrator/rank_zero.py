"""What rank 0 has besides its part of the policy: engines, graders, MLflow, the display."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from aent.checkpoint import resume, rollout_files
from aent.checkpoint.folders import LoopState
from aent.models import tokenizer
from aent.models.pieces import Pieces
from aent.orchestrator import entities
from aent.orchestrator.engines import Engines
from aent.orchestrator.evaluator import Evaluator
from aent.orchestrator.offer import Offer
from aent.orchestrator.questions import load_suites, load_task
from aent.orchestrator.records import StepDone
from aent.orchestrator.report import Report
from aent.orchestrator.rollouts import Rollouts
from aent.orchestrator.sampling import RolloutSource
from aent.recipe.schema import Recipe
from aent.runtime.timeline import Timeline
from aent.tasks import curriculum
from aent.tasks.asking import Asker
from aent.tasks.judge import JudgePool
from aent.tracking.display import Display
from aent.tracking.tracker import Tracker


@dataclass(frozen=True)
class RankZero:
    """Made by ``open``; ``close`` ends what it started, whatever happened."""

    engines: Engines
    rollouts: Rollouts
    evaluator: Evaluator
    report: Report
    opened: ExitStack

    @staticmethod
    def open(
        recipe: Recipe,
        run_dir: Path,
        model_path: Path,
        timeline: Timeline,
        progress: Callable[[], None],
        offer: Offer,
    ) -> RankZero:
        """Start graders and tracking, load the task, and wait for the engines."""
        with ExitStack() as opened:
            judge = opened.enter_context(JudgePool(recipe.task))
            folder = resume.chosen(run_dir)
            saved = None if folder is None else LoopState.read(folder)
            run_id, first_step = (saved.mlflow_run_id, saved.step) if saved else (None, 0)
            tracker = Tracker(run_dir, recipe, run_id or "", first_step)
            words = tokenizer.load(
                recipe.model, model_path, recipe.task.template, resume.started(run_dir)
            )
            display = opened.enter_context(Display(recipe.steps))
            report = Report(recipe, run_dir, tracker, display, Pieces(words), progress)
            task = load_task(recipe, words, judge, progress)
            entities.log_datasets(tracker, recipe, task)
            suites = load_suites(recipe, words)
            prompts = (words.chat_prompt(*q.turns(recipe.task.system_prompt)) for q in task.train)
            say = report.display.message
            engines = Engines.reach(recipe, run_dir, model_path, prompts, say, progress, offer)
            engines.fleet.timeline = engines.sender.timeline = timeline
            judge.draw_on(timeline)
            asker = Asker(engines.fleet, words, judge, progress)
            rollouts = Rollouts(
                recipe, run_dir, RolloutSource(recipe, task, asker), engines.unproven
            )
            opened.callback(rollouts.close)
            return RankZero(
                engines=engines,
                rollouts=rollouts,
                evaluator=Evaluator(recipe, asker, task.heldout, suites, report),
                report=report,
                opened=opened.pop_all(),
            )

    def resume(self, saved: LoopState, same_layout: bool) -> int:
        """Continue with what earlier starts left of the run until this checkpoint; return the first
        step whose rollouts are not on disk."""
        self.report.resume(saved.step)
        if not same_layout:
            self.report.display.message(
                "the layout is not that of the checkpoint: random streams begin anew"
            )
        fresh_from = self.rollouts.resume(saved.step, curriculum.from_json(saved.questions))
        begun = rollout_files.begun(self.rollouts.run_dir)
        if begun is not None and begun >= fresh_from:
            self.report.display.message(
                f"the responses of step {fresh_from} had begun to be sampled and are not on disk: "
                "they are asked for again"
            )
        return fresh_from

    def record(self, done: StepDone, seconds: Mapping[str, float]) -> None:
        """Log and show the step; ``seconds`` has the time of each phase."""
        assert self.rollouts.newest is not None
        busy_s, gap = self.engines.take_busy_s(), self.engines.probe.gap
        load = self.engines.take_load(busy_s)
        newest, noted = self.rollouts.newest, self.rollouts.noted
        self.report.step(done, newest, noted, seconds, busy_s, gap, load)

    def close(self) -> None:
        """End sampling and graders, and release the terminal."""
        self.opened.close()
