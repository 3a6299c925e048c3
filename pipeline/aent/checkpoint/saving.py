"""Writing a checkpoint: every rank writes its files, in a thread if the run continues."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from aent.algorithm.entropy_controls import Memory
from aent.checkpoint.folders import (
    PARTIAL,
    SUMS,
    TRAINER,
    LoopState,
    Questions,
    path_of,
    prune,
    rename,
    written,
)
from aent.entropy.controllers import ControllerState
from aent.recipe.load import dump
from aent.recipe.schema import Recipe
from aent.runtime import distributed
from aent.runtime.on_rank_zero import OnRankZero
from aent.runtime.phases import Phases
from aent.tracking.journal import JOURNAL_FILE
from aent.tracking.store import known_run_id
from aent.trainer import state
from aent.trainer.trainer import Trainer

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest


@dataclass(frozen=True)
class Writer:
    """The parts of the run that a checkpoint contains, and what writes them; on every rank."""

    recipe: Recipe
    run_dir: Path
    trainer: Trainer
    phases: Phases
    on_rank_zero: OnRankZero


@dataclass
class Saving:
    """A checkpoint being written, to which each rank writes its files."""

    writer: Writer
    partial: Path  # its folder, until it is complete
    request: AsyncRequest
    sums: dict[str, str] = field(default_factory=dict)  # SHA-256 of this rank's files
    error: Exception | None = None
    thread: threading.Thread | None = None  # writes while the run continues

    def start(self) -> None:
        """Write this rank's files in a thread."""
        # a daemon thread: a run that ends for another reason does not wait for it
        self.thread = threading.Thread(target=self.write, name="checkpoint", daemon=True)
        self.thread.start()

    def is_under_way(self) -> bool:
        """Whether this rank's thread is still writing."""
        return self.thread is not None and self.thread.is_alive()

    def write(self) -> None:
        """Write and hash this rank's files. An error of any kind is kept for ``finish`` to report:
        a thread would lose it."""
        assert self.request.async_fn is not None
        try:
            self.request.async_fn()
            for path in self.partial.glob(f"{TRAINER}/__{dist.get_rank()}_*"):
                self.sums[str(path.relative_to(self.partial))] = written(path)
        except Exception as error:
            self.error = error

    def finish(self) -> None:
        """Wait for every rank's files and give the checkpoint its name. Collective.

        Raises on every rank if one could not write, or not within ``trainer.collective_timeout_s``.
        """
        target = self.partial.with_suffix("")
        patience_s = self.writer.recipe.trainer.collective_timeout_s
        with self.writer.phases("checkpoint"):
            if self.thread is not None:
                self.thread.join(patience_s)
            if self.is_under_way():
                raise TimeoutError(f"{self.partial}: not written after {patience_s:.0f} s")
            everyones = distributed.everyones(
                self.sums, self.error, f"write its files of {self.partial}"
            )
            sums = {name: digest for part in everyones for name, digest in part.items()}
            state.finish_save(self.request)
        with self.writer.phases("publish"):
            self.writer.on_rank_zero.alone(
                f"publishing {target.name}", lambda: self._publish(target, sums)
            )

    def _publish(self, target: Path, sums: dict[str, str]) -> None:
        """Rank 0's part: hash what no rank has hashed, rename the folder, remove older ones."""
        for path in sorted(p for p in self.partial.rglob("*") if p.is_file()):
            name = str(path.relative_to(self.partial))
            if name not in sums:
                sums[name] = written(path)
        (self.partial / SUMS).write_text("".join(f"{sums[n]}  {n}\n" for n in sorted(sums)))
        written(self.partial / SUMS)
        rename(self.partial, target)
        prune(self.writer.run_dir, self.writer.recipe.checkpoint.keep)


def begin(
    writer: Writer,
    step: int,
    controller: ControllerState,
    controls: Memory,
    logprob_gap: float | None,
    questions: Questions | None,
    *,
    goes_on: bool,
) -> Saving:
    """Begin to write the run's state after ``step`` steps; then call ``Saving.finish``. Collective.

    questions: what a curriculum knows about them; rank 0's. goes_on: True if the run continues
    while a copy of the state is written; else the files are written now.
    """
    target = path_of(writer.run_dir, step)
    partial = target.with_name(target.name + PARTIAL)

    def make_room() -> None:
        shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed here
        (partial / TRAINER).mkdir(parents=True)
        journal = writer.run_dir / JOURNAL_FILE
        LoopState(
            step=step,
            controller=controller,
            logprob_gap=logprob_gap,
            journal_bytes=journal.stat().st_size if journal.exists() else 0,
            mlflow_run_id=known_run_id(writer.run_dir) or None,
            controls=controls,
            questions=questions or {},
        ).write(partial)
        (partial / "recipe.yaml").write_text(dump(writer.recipe))

    with writer.phases("checkpoint"):
        writer.on_rank_zero.alone(f"room for {target.name}", make_room)
        request = state.begin_save(writer.trainer, partial / TRAINER, copied=goes_on)
        saving = Saving(writer, partial, request)
        if goes_on:
            saving.start()
        else:
            saving.write()
    return saving
