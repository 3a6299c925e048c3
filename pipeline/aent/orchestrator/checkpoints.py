"""Where a run continues, and the checkpoints that it writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from aent.algorithm.entropy_controls import Memory
from aent.checkpoint import resume
from aent.checkpoint.folders import TRAINER, LoopState
from aent.checkpoint.saving import Saving, Writer, begin
from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings, ControllerState
from aent.orchestrator.rank_zero import RankZero
from aent.orchestrator.turns import Turns
from aent.runtime import distributed
from aent.runtime.on_rank_zero import HeldByRankZero
from aent.runtime.signals import StopRequest
from aent.tasks.curriculum import to_json
from aent.trainer import state


@dataclass(frozen=True)
class Start:
    """Where this start of the run begins, and what is known at that point."""

    step: int
    controller: ControllerState
    controls: Memory
    resumed: bool  # from a checkpoint, which may be the one before the first step
    fresh_from: int  # first step that is sampled again, not read from disk
    gap: float | None  # trainer against engine before the stop, nats

    def gap_before(self, step: int) -> float | None:
        """The mismatch to compare this step's with; only for the first fresh samples."""
        return self.gap if step == self.fresh_from else None


@dataclass
class Checkpoints:
    """On every rank; every method is collective."""

    stop: StopRequest
    zero: HeldByRankZero[RankZero]
    writer: Writer
    turns: Turns
    saving: Saving | None = None  # a checkpoint under way

    def restore(self, settings: ControllerSettings) -> Start:
        """Restore the checkpoint from which the run continues, on every rank; without one, start
        from the beginning."""
        folder = resume.chosen(self.writer.run_dir)
        if folder is None:
            state_before = controllers.initial_state(settings)
            return Start(0, state_before, {}, resumed=False, fresh_from=0, gap=None)
        with self.writer.phases("restore"):
            saved = LoopState.read(folder)
            same_layout = state.load(self.writer.trainer, folder / TRAINER)
            fresh_from = self.zero.tell(
                "reading what was recorded", lambda zero: zero.resume(saved, same_layout)
            )
        controller = controllers.resumed(settings, saved.controller)
        return Start(saved.step, controller, saved.controls, True, fresh_from, saved.logprob_gap)

    def save(
        self, step: int, controller: ControllerState, memory: Memory, gap: float | None
    ) -> bool:
        """Write a checkpoint of the run after ``step`` steps, if one is due or a signal asked for
        it. Returns whether the run is to stop here: the ranks agree on it.

        A checkpoint that is written while the run continues is also completed here, after the step
        in which the last rank has finished. The first and the last one are waited for: before the
        first there is nothing to continue from, and after the last there is nothing left to do.
        """
        writing = self.saving is not None and self.saving.is_under_way()
        flags = torch.tensor([self.stop.received, writing], dtype=torch.int64)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=distributed.control_group())
        asked, writing = map(bool, flags)
        last = step == self.writer.recipe.steps
        settings = self.writer.recipe.checkpoint
        due = asked or (settings.every > 0 and (last or step % settings.every == 0))
        if self.saving is not None and (due or not writing):
            self._finish_saving()
        if due and not asked and self.writer.recipe.rollout.max_staleness:
            # on disk, a run that goes on from here need not ask for it again; a stop is in a hurry
            with self.writer.phases("sample"):
                self.zero.alone("what is sampled ahead", lambda zero: zero.rollouts.settle())
        if due:
            goes_on = settings.asynchronous and not asked and not last and step > 0
            questions = self.zero.alone(
                "what the curriculum knows", lambda zero: to_json(zero.rollouts.record)
            )
            with self.turns.lent(goes_on=last or not asked):
                self.saving = begin(
                    self.writer, step, controller, memory, gap, questions, goes_on=goes_on
                )
                if not goes_on:
                    self._finish_saving()
        return asked and not last

    def _finish_saving(self) -> None:
        saving, self.saving = self.saving, None
        assert saving is not None
        saving.finish()
