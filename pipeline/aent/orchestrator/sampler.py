"""A step's batch: sampled once, written to disk before the policy learns from it, on every rank."""

from __future__ import annotations

from dataclasses import dataclass

from aent.algorithm.entropy_controls import Plan
from aent.data.batch import Batch, broadcast_batch
from aent.data.rollout import Rollout
from aent.orchestrator.rank_zero import RankZero
from aent.runtime import distributed
from aent.runtime.on_rank_zero import HeldByRankZero
from aent.runtime.phases import Phases


@dataclass(frozen=True)
class Sampler:
    """On every rank; its method is collective."""

    phases: Phases
    zero: HeldByRankZero[RankZero]

    def next(self, step: int, plan: Plan) -> Batch:
        """The batch of this step, sampled by the plan and graded."""
        with self.phases("sample"):
            batch = self.zero.alone(
                f"sampling of step {step}",
                lambda zero: as_batch(zero.rollouts.of(step, plan), plan),
            )
            return broadcast_batch(batch, distributed.control_group())


def as_batch(rollout: Rollout, plan: Plan) -> Batch:
    """The step's samples, with the temperature at which they were sampled; the plan's if a file of
    an earlier version has none."""
    recorded = rollout.temperature
    return Batch.from_samples(rollout.samples, plan.temperature if recorded is None else recorded)
