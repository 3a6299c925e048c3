"""Rank 0's rollouts: read from disk if the step was sampled before, else from the engines. If the
recipe allows older weights, the next steps are sampled meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from aent.algorithm.entropy_controls import Plan
from aent.checkpoint import rollout_files
from aent.data.rollout import Rollout
from aent.orchestrator.sampling import RolloutSource
from aent.recipe.schema import Recipe
from aent.runtime.worker_thread import WorkerThread
from aent.tasks import curriculum
from aent.tasks.curriculum import Record

GIVE_UP_S = 10.0  # time for sampling to end after it was cancelled


@dataclass(frozen=True)
class Made:
    """A step's rollouts, what the curriculum knows after them, and metrics of its questions."""

    rollout: Rollout
    record: Record
    noted: dict[str, float]


@dataclass
class Rollouts:
    """The rollouts of the run's steps.

    With ``rollout.max_staleness`` k, a thread samples the k steps after t, one after the other,
    while the policy learns from step t ("one step off-policy" if k is 1, arXiv 2410.18252). A
    weight update does not interrupt it: a response continues with the new weights, so its tokens
    may have several versions, none more than k below that of its step. A curriculum chooses a
    step's questions from the rollouts of all steps before it, which are complete when its sampling
    begins, ahead or not.
    """

    recipe: Recipe
    run_dir: Path
    source: RolloutSource
    # held while it is not known whether the engines compute with the weights that they should
    unproven: threading.Lock = field(default_factory=threading.Lock)
    newest: Rollout | None = None
    record: Record = field(default_factory=dict)  # what the curriculum knows, the newest included
    noted: dict[str, float] = field(default_factory=dict)  # metrics of the newest's questions
    _sampled: Record = field(default_factory=dict)  # the same, of the last step that was sampled
    _thread: WorkerThread | None = None
    _ahead: dict[int, Future[Made]] = field(default_factory=dict)  # by step, in their order

    def of(self, step: int, plan: Plan) -> Rollout:
        """This step's rollouts, with rewards. New ones are on disk before the policy learns from
        them. Sampling of the next steps begins by the same plan, as far as allowed.
        """
        under_way = self._ahead.pop(step, None)
        made = self._make(step, plan) if under_way is None else under_way.result()
        self.newest, self.record, self.noted = made.rollout, made.record, made.noted
        last = min(step + self.recipe.rollout.max_staleness, self.recipe.steps - 1)
        for later in range(step + 1, last + 1):
            if later not in self._ahead:
                if self._thread is None:
                    self._thread = WorkerThread("sampling ahead")
                self._ahead[later] = self._thread.submit(partial(self._make, later, plan))
        return made.rollout

    def settle(self) -> None:
        """Return when nothing is being sampled, and what was is on disk.

        Raises what the sampling raised; its waits have their own deadlines.
        """
        for under_way in self._ahead.values():
            under_way.result()

    def close(self) -> None:
        """Cancel what is being sampled: a run that continues will sample it again."""
        for under_way in self._ahead.values():
            under_way.cancel()  # what has not begun must not be noted as begun
        self.source.asker.interrupt()
        wait(self._ahead.values(), GIVE_UP_S)

    def resume(self, step: int, record: Record | None = None) -> int:
        """Continue after ``step`` steps, with the ``record`` at that point; return the first step
        whose rollouts are not on disk."""
        self.record = self._sampled = record or {}
        fresh_from = rollout_files.recorded_until(self.run_dir, step)
        # behind a gap: not this policy's
        rollout_files.forget(self.run_dir, from_step=fresh_from)
        return fresh_from

    def _make(self, step: int, plan: Plan) -> Made:
        """Read from disk or sample; one step at a time, in order."""
        rollout, before = rollout_files.read(self.run_dir, step), self._sampled
        if rollout is None:
            staleness = self.recipe.rollout.max_staleness
            keep = self.recipe.checkpoint.every > 0  # else no step is executed again ...
            # ... but what was sampled ahead of a run that was asked to stop is sampled again
            anew = (keep or staleness > 0) and rollout_files.begin(self.run_dir, step)
            rollout = replace(self.source.next(step, plan, staleness, before), anew=anew)
            with self.unproven:
                if keep:
                    rollout_files.write(self.run_dir, step, rollout)
        noted = {}
        if self.recipe.rollout.max_staleness:
            noted["staleness/sampled_anew"] = float(rollout.anew * len(rollout.samples))
        if (settings := self.recipe.task.curriculum) is not None:
            self._sampled = curriculum.learnt(before, step, rollout.outcomes)
            noted |= curriculum.metrics(settings, before, self._sampled, step, rollout.outcomes)
        return Made(rollout, self._sampled, noted)
