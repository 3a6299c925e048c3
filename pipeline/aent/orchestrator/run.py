"""The parts of a run on one rank, as the loop uses them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from aent.checkpoint.saving import Writer
from aent.orchestrator import engines
from aent.orchestrator.checkpoints import Checkpoints
from aent.orchestrator.offer import Offer
from aent.orchestrator.rank_zero import RankZero
from aent.orchestrator.sampler import Sampler
from aent.orchestrator.turns import Turns
from aent.orchestrator.weight_sync import WeightSync
from aent.recipe.schema import Recipe
from aent.runtime import distributed, profiling
from aent.runtime.on_rank_zero import HeldByRankZero, OnRankZero
from aent.runtime.phases import Phases
from aent.runtime.profiling import Profiler
from aent.runtime.signals import StopRequest
from aent.trainer.offload import Offload
from aent.trainer.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """The parts on every rank. Their methods are collective."""

    recipe: Recipe
    run_dir: Path
    phases: Phases
    trainer: Trainer
    sampler: Sampler
    turns: Turns
    weights: WeightSync
    checkpoints: Checkpoints
    profiler: Profiler
    peak_flops: float | None  # of all ranks, per second; None: not needed
    zero: HeldByRankZero[RankZero]  # evaluator, report, engines: only on rank 0

    @staticmethod
    @contextmanager
    def open(
        recipe: Recipe, run_dir: Path, model_path: Path, stop: StopRequest, phases: Phases
    ) -> Iterator[Run]:
        """Join the job, build the model, and on rank 0 reach the engines."""
        rank = int(os.environ["RANK"])
        if recipe.rollout.colocated:  # before this rank uses its GPU
            engines.put_to_sleep(recipe, run_dir, phases.progress)
        distributed.initialize(recipe.trainer, recipe.seed)
        deadline = recipe.rollout.progress_timeout_s + recipe.rollout.engine.start_timeout_s
        store = dist.distributed_c10d._get_default_store()
        control = OnRankZero(store, rank, deadline, phases.progress, phases.timeline)
        trainer = Trainer(recipe, model_path)
        peak = profiling.peak_flops(recipe.profile, trainer.bridge.dtype)
        profiler = Profiler(recipe.profile, run_dir, phases, rank)
        offer = Offer.of(recipe, trainer)
        zero = HeldByRankZero(
            control,
            "reaching the engines",
            lambda: RankZero.open(
                recipe, run_dir, model_path, phases.timeline, control.progress, offer
            ),
        )
        writer = Writer(recipe, run_dir, trainer, phases, control)
        offload = Offload(trainer.model, trainer.optimizer) if recipe.rollout.colocated else None
        turns = Turns(phases, zero, offload)
        try:
            yield Run(
                recipe,
                run_dir,
                phases,
                trainer,
                Sampler(phases, zero),
                turns,
                WeightSync.of(trainer, phases, zero, turns, offer),
                Checkpoints(stop, zero, writer, turns),
                profiler,
                peak,
                zero,
            )
        finally:
            profiler.end()
            zero.meanwhile(RankZero.close)
        # rank 0 has the job's store, which other ranks may still need to end
        dist.barrier(group=distributed.control_group())
        distributed.shutdown()
