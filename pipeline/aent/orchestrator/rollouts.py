"""Rank 0's rollouts: from disk where a step was begun before, else from the engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aent.algorithm.entropy_controls import Plan
from aent.checkpoint import rollout_files
from aent.data.rollout import Rollout
from aent.orchestrator.sampling import RolloutSource


@dataclass
class Rollouts:
    """What the run's steps sampled."""

    run_dir: Path
    source: RolloutSource
    on_disk: bool  # checkpoints are written, after which a step may be executed again
    newest: Rollout | None = None

    def of(self, step: int, plan: Plan) -> Rollout:
        """This step's rollouts, rewarded; new ones are on disk before anything is learnt from
        them."""
        self.newest = rollout_files.read(self.run_dir, step)
        if self.newest is None:
            self.newest = self.source.next(step, plan)
            if self.on_disk:
                rollout_files.write(self.run_dir, step, self.newest)
        return self.newest

    def resume(self, step: int) -> int:
        """Go on after ``step`` steps; return the first step whose rollouts are not on disk."""
        fresh_from = rollout_files.recorded_until(self.run_dir, step)
        # behind a gap: not this policy's
        rollout_files.forget(self.run_dir, from_step=fresh_from)
        return fresh_from
