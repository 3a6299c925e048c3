"""One rank's side of a run: what the loop does in a line each.

``Run`` is on every rank and its methods are collective; ``RankZero`` holds what rank 0 has besides
(engines, judges, MLflow, the display) and works alone, through ``Run.control``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed as dist

from aent.batch import Batch, broadcast_batch
from aent.entropy.controllers import ControllerReport, ControllerSettings
from aent.phases import Phases
from aent.rank_zero import RankZero
from aent.recipe.schema import Recipe
from aent.runtime import distributed
from aent.runtime.control import Control
from aent.trainer.trainer import MinibatchResult, Trainer

T = TypeVar("T")


@dataclass
class Run:
    """What every rank holds."""

    recipe: Recipe
    run_dir: Path
    trainer: Trainer
    control: Control
    controller: ControllerSettings
    zero: RankZero | None  # on rank 0 only
    phases: Phases = field(default_factory=Phases)

    @staticmethod
    @contextmanager
    def open(recipe: Recipe, run_dir: Path, model_path: Path) -> Iterator[Run]:
        """Join the job, build the model, and on rank 0 reach the engines."""
        distributed.initialize(recipe.trainer, recipe.seed)
        rank = dist.get_rank()
        deadline = recipe.rollout.progress_timeout_s + recipe.rollout.engine.start_timeout_s
        control = Control(dist.distributed_c10d._get_default_store(), rank, deadline)
        trainer = Trainer(recipe, model_path)
        zero = control.alone(
            "reaching the engines",
            lambda: RankZero.open(recipe, run_dir, model_path, control.progress),
        )
        settings = ControllerSettings(**recipe.controller.model_dump())
        try:
            yield Run(recipe, run_dir, trainer, control, settings, zero)
        finally:
            if zero is not None:
                zero.close()
        distributed.shutdown()

    def next_batch(self, step: int) -> Batch:
        """Sample, judge, and give the batch to every rank."""
        batch = self.alone(
            f"sampling of step {step}", lambda zero: Batch.from_samples(zero.sample(step))
        )
        return broadcast_batch(batch, distributed.control_group())

    def sync(self, version: int) -> None:
        """Give the engines the trainer's weights, and prove that they sample from them."""
        with self.phases("sync"):
            weights = self.trainer.export()  # collective: every rank goes through all of it
            if self.zero is not None:
                self.zero.push(weights, version)
            for _ in weights:
                pass
            probes = self.alone(
                f"the probe of weight version {version}",
                lambda zero: Batch.from_samples(zero.probe()),
            )
            batch = broadcast_batch(probes, distributed.control_group())
            log_probs = self.trainer.score(batch)
            self.alone(
                f"the check of weight version {version}",
                lambda zero: zero.check_probe(batch, log_probs, version),
            )

    def record(
        self, step: int, batch: Batch, results: Sequence[MinibatchResult], report: ControllerReport
    ) -> None:
        """Log and show the step (rank 0)."""
        seconds = self.phases.take()
        if self.zero is not None:
            self.zero.record(step, batch, results, report, seconds)

    def evaluate(self, step: int) -> None:
        """Score the held-out questions on the engines, with the weights after ``step`` steps."""
        if self.recipe.task.heldout or self.recipe.evaluation.suites:
            with self.phases("evaluate"):
                self.alone(f"evaluation after {step} steps", lambda zero: zero.evaluate(step))

    def finish(self) -> None:
        """Say goodbye (rank 0): MLflow's run is FINISHED."""
        self.alone("the summary", lambda zero: zero.finish())

    def alone(self, what: str, work: Callable[[RankZero], T]) -> T | None:
        """``work`` on rank 0, while the other ranks wait for it."""
        return self.control.alone(what, lambda: work(cast(RankZero, self.zero)))
