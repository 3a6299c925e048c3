"""Rank 0's rollouts: from disk where a step was begun before, else from the engines; of the next
step meanwhile, where the recipe allows older weights."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
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


@dataclass
class Rollouts:
    """What the run's steps sampled.

    With ``rollout.max_staleness`` 1 step t + 1 is sampled in a thread while step t is learnt from,
    by the weights of t (one-step off-policy, as in arXiv 2410.18252). It has ended, and is on disk,
    before those weights are replaced, so that every token of a step has one version, known before:
    a resumed run has the same rollouts as one that was not stopped. A curriculum chooses a step's
    questions by the rollouts of all steps before it, which are there when its sampling begins,
    ahead or not.
    """

    recipe: Recipe
    run_dir: Path
    source: RolloutSource
    newest: Rollout | None = None
    record: Record = field(default_factory=dict)  # what the curriculum knows, the newest included
    noted: dict[str, float] = field(default_factory=dict)  # metrics of the newest's questions
    _thread: WorkerThread | None = None
    _ahead: dict[int, Future[Rollout]] = field(default_factory=dict)  # by step; one at most

    def of(self, step: int, plan: Plan) -> Rollout:
        """This step's rollouts, rewarded. New ones are on disk before anything is learnt from them.

        The next step's begin to be sampled by the same plan, where they may.
        """
        under_way = self._ahead.pop(step, None)
        made = self._make(step, plan, self.record) if under_way is None else under_way.result()
        self.newest = made
        if (settings := self.recipe.task.curriculum) is not None:
            before, self.record = self.record, curriculum.learnt(self.record, step, made.outcomes)
            self.noted = curriculum.metrics(settings, before, self.record, step, made.outcomes)
        if self.recipe.rollout.max_staleness and step + 1 < self.recipe.steps:
            if self._thread is None:
                self._thread = WorkerThread("sampling ahead")
            work = partial(self._make, step + 1, plan, self.record)
            self._ahead[step + 1] = self._thread.submit(work)
        return made

    def settle(self) -> None:
        """Return when nothing is being sampled: the engines may get other weights.

        Raises what the sampling raised; its waits have their own deadlines.
        """
        for under_way in self._ahead.values():
            under_way.result()

    def resume(self, step: int, record: Record | None = None) -> int:
        """Go on after ``step`` steps, with the ``record`` that they left; return the first step
        whose rollouts are not on disk."""
        self.record = record or {}
        fresh_from = rollout_files.recorded_until(self.run_dir, step)
        # behind a gap: not this policy's
        rollout_files.forget(self.run_dir, from_step=fresh_from)
        return fresh_from

    def _make(self, step: int, plan: Plan, record: Record) -> Rollout:
        rollout = rollout_files.read(self.run_dir, step)
        if rollout is None:
            staleness = self.recipe.rollout.max_staleness
            rollout = self.source.next(step, plan, staleness, record)
            if self.recipe.checkpoint.every:  # else no step is executed again
                rollout_files.write(self.run_dir, step, rollout)
        return rollout
