"""One rank's side of a run: what the loop does in a line each.

``Run`` is on every rank and its methods are collective; ``RankZero`` holds what rank 0 has besides
(engines, judges, MLflow, the display) and works alone, through ``Run.control``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from aent.algorithm.entropy_controls import Memory, Plan
from aent.checkpoint import resume
from aent.checkpoint.folders import TRAINER, LoopState
from aent.checkpoint.saving import Saving, Writer, begin
from aent.data.batch import Batch, broadcast_batch
from aent.entropy import controllers
from aent.entropy.controllers import ControllerReport, ControllerSettings, ControllerState
from aent.orchestrator.gap import check_gap
from aent.orchestrator.rank_zero import RankZero
from aent.recipe.schema import Recipe
from aent.runtime import distributed
from aent.runtime.on_rank_zero import OnRankZero
from aent.runtime.phases import Phases
from aent.runtime.signals import StopRequest
from aent.trainer import state
from aent.trainer.trainer import MinibatchResult, Trainer

T = TypeVar("T")


@dataclass
class Run:
    """What every rank holds."""

    recipe: Recipe
    run_dir: Path
    trainer: Trainer
    control: OnRankZero
    controller: ControllerSettings
    zero: RankZero | None  # on rank 0 only
    phases: Phases
    stop: StopRequest
    resumed: bool = False  # from a checkpoint, which may be the one before the first step
    first_step: int = 0  # of this start
    fresh_from: int = 0  # first step that is sampled anew, not read from an earlier start
    gap_before: float | None = None  # trainer against engine, before the stop
    saving: Saving | None = None  # a checkpoint under way

    @staticmethod
    @contextmanager
    def open(
        recipe: Recipe, run_dir: Path, model_path: Path, stop: StopRequest, phases: Phases
    ) -> Iterator[Run]:
        """Join the job, build the model, and on rank 0 reach the engines."""
        rank = int(os.environ["RANK"])
        distributed.initialize(recipe.trainer, recipe.seed)
        deadline = recipe.rollout.progress_timeout_s + recipe.rollout.engine.start_timeout_s
        store = dist.distributed_c10d._get_default_store()
        control = OnRankZero(store, rank, deadline, phases.progress)
        trainer = Trainer(recipe, model_path)
        zero = control.alone(
            "reaching the engines",
            lambda: RankZero.open(recipe, run_dir, model_path, control.progress),
        )
        settings = ControllerSettings(**recipe.controller.model_dump())
        try:
            yield Run(recipe, run_dir, trainer, control, settings, zero, phases, stop)
        finally:
            if zero is not None:
                zero.close()
        # rank 0 has the job's store, which others may still be asking for its last words
        dist.barrier(group=distributed.control_group())
        distributed.shutdown()

    def start(self) -> tuple[ControllerState, Memory]:
        """What the controller and the entropy controls know before the first step; everything else
        is brought to it too."""
        folder = resume.chosen(self.run_dir)
        if folder is None:
            return controllers.initial_state(self.controller), {}
        self.resumed = True
        with self.phases("restore"):
            saved = LoopState.read(folder)
            same_layout = state.load(self.trainer, folder / TRAINER)
            until = self.alone(
                "reading what was recorded", lambda zero: zero.restore(saved.step, same_layout)
            )
            self.first_step = self.phases.step = saved.step
            self.gap_before = saved.logprob_gap
            self.fresh_from = self._from_rank_zero(until or 0)
        return saved.controller, saved.controls

    def next_batch(self, step: int, plan: Plan) -> Batch:
        """Sample, judge, and give the batch to every rank. The trainer's policy has the plan's
        temperature from here on."""
        self.phases.step = step
        self.trainer.temperature = plan.temperature
        with self.phases("sample"):
            batch = self.alone(
                f"sampling of step {step}", lambda zero: Batch.from_samples(zero.sample(step, plan))
            )
            return broadcast_batch(batch, distributed.control_group())

    def check_gap(self, step: int, gap: float) -> None:
        """Stop the run when engine and trainer disagree about the same tokens and weights; see
        ``aent.orchestrator.gap``."""
        before = self.gap_before if step == self.fresh_from else None
        check_gap(step, gap, self.recipe.rollout.max_logprob_gap, before)

    def sync(self, version: int) -> None:
        """Give the engines the trainer's weights, and prove that they sample from them."""
        with self.phases("sync"):
            while (batch := self._push(version)) is None:
                pass
            log_probs = self._score_probe(batch)
            self.alone(
                f"the check of weight version {version}",
                lambda zero: zero.check_probe(batch, log_probs, version),
            )

    def _score_probe(self, batch: Batch) -> Tensor:
        """What the trainer says of the probe, at the temperature of log-probs of given tokens."""
        temperature, self.trainer.temperature = self.trainer.temperature, 1.0
        try:
            return self.trainer.score(batch)
        finally:
            self.trainer.temperature = temperature

    def _push(self, version: int) -> Batch | None:
        """Send the weights to the engines, and ask them for the probe: its text, to be scored. None
        where an engine was lost meanwhile: those that are left want all of it again."""
        weights = self.trainer.export()  # collective: every rank goes through all of it
        done = True
        error: Exception | None = None
        if self.zero is not None:
            try:
                done = self.zero.push(weights, version)
            except Exception as e:  # for the others too: below
                error = e
        for _ in weights:
            pass

        def probe(zero: RankZero) -> Batch | None:
            if error is not None:
                raise error
            return Batch.from_samples([zero.ask_probe()]) if done else None

        asked = self.alone(f"sending weight version {version}", probe)
        if not self._from_rank_zero(asked is not None):
            return None
        return broadcast_batch(asked, distributed.control_group())

    def _from_rank_zero(self, value: int) -> int:
        """What rank 0 has, on every rank."""
        told = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(told, 0, group=distributed.control_group())
        return int(told)

    def record(
        self,
        step: int,
        batch: Batch,
        results: Sequence[MinibatchResult],
        report: ControllerReport,
        memory: Memory,
    ) -> None:
        """Log and show the step (rank 0)."""
        seconds = self.phases.take()
        with self.phases("record"):
            if self.zero is not None:
                self.zero.record(step, batch, results, report, memory, seconds)

    def evaluate(self, step: int) -> None:
        """Score the held-out questions and the suites on the engines, with the weights after
        ``step`` steps, where it is time to: before the first, after the last, and every so many."""
        there_are = self.recipe.task.heldout or self.recipe.evaluation.suites
        if there_are and self._is_due(step, self.recipe.evaluation.every):
            with self.phases("evaluate"):
                self.alone(f"evaluation after {step} steps", lambda zero: zero.evaluate(step))

    def checkpoint(
        self, step: int, controller: ControllerState, memory: Memory, gap: float | None
    ) -> bool:
        """Write a checkpoint of the run after ``step`` steps, where it is time to or a signal has
        asked for it. Returns whether the run is to stop here: the ranks agree on it.

        One that is written while the run goes on gets its name here too, after the step in which
        the last rank has ended. The first and the last one are waited for: before the one, nothing
        is there to go on from; after the other, nothing is left to do.
        """
        writing = self.saving is not None and self.saving.is_under_way()
        flags = torch.tensor([self.stop.received, writing], dtype=torch.int64)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=distributed.control_group())
        asked, writing = map(bool, flags)
        settings = self.recipe.checkpoint
        due = asked or (settings.every > 0 and self._is_due(step, settings.every))
        if self.saving is not None and (due or not writing):
            self._finish_saving()
        if due:
            goes_on = settings.asynchronous and not asked and step not in (0, self.recipe.steps)
            writer = Writer(self.recipe, self.run_dir, self.trainer, self.phases, self.control)
            self.saving = begin(writer, step, controller, memory, gap, goes_on=goes_on)
            if not goes_on:
                self._finish_saving()
        if not asked or step == self.recipe.steps:
            return False
        self.alone("the last words", lambda zero: zero.suspend())
        return True

    def _finish_saving(self) -> None:
        saving, self.saving = self.saving, None
        assert saving is not None
        saving.finish()

    def _is_due(self, step: int, every: int) -> bool:
        return step in (0, self.recipe.steps) or bool(every and step % every == 0)

    def finish(self, peaks: Sequence[int]) -> None:
        """Say goodbye (rank 0): MLflow's run is FINISHED. peaks: bytes that each rank
        held at most."""
        self.alone("the summary", lambda zero: zero.finish(peaks))

    def alone(self, what: str, work: Callable[[RankZero], T]) -> T | None:
        """``work`` on rank 0, while the other ranks wait for it."""
        return self.control.alone(what, lambda: work(cast(RankZero, self.zero)))
