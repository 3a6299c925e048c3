"""The state of the whole loop, saved and restored as one thing.

``run_dir/checkpoints/step_000010/`` is the run after 10 steps: step 10 comes next, and the weight
version is 10. In it:

- ``state.json``: what ``LoopState`` holds;
- ``recipe.yaml``: of the run that wrote it;
- ``trainer/``: model, optimizer, schedule and random streams (``trainer.state``);
- ``SHA256SUMS``: of every other file (``sha256sum -c`` reads it).

It is written under a temporary name and renamed when it is whole; with ``checkpoint.asynchronous``
in a thread of each rank, while the run goes on. There is no data cursor: a step's prompts and seeds
are functions of the run's seed and the step (``sampling``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist

from aent.algorithm.entropy_controls import Memory
from aent.checkpoint import rollout_files
from aent.entropy.controllers import ControllerState
from aent.recipe.load import dump
from aent.runtime import distributed
from aent.runtime.files import read_again
from aent.tracking.journal import JOURNAL_FILE
from aent.tracking.store import known_run_id

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

    from aent.orchestrator.run import Run

FOLDER = "checkpoints"
TRAINER = "trainer"  # the trainer's part
SUMS = "SHA256SUMS"
PARTIAL = ".partial"  # while it is written
DAMAGED = ".damaged"  # set aside: not what was written
NAME = re.compile(r"step_(\d{6,})(\.partial|\.damaged)?")


class CheckpointError(RuntimeError):
    """A run cannot be resumed from what is on disk."""


@dataclass(frozen=True)
class LoopState:
    """What the loop goes on from, the trainer's part apart."""

    step: int  # done before; also the number of the next one, and the weight version
    controller: ControllerState
    logprob_gap: float | None  # of the last step, trainer against engine; None before the first
    journal_bytes: int  # length of the journal: every point of the steps done is within
    mlflow_run_id: str | None  # None where no server has been reached yet
    controls: Memory = field(default_factory=dict)  # what the entropy controls keep, by kind

    @classmethod
    def read(cls, folder: Path) -> LoopState:
        """Raises KeyError or TypeError for a state of another version of this package."""
        saved = json.loads((folder / "state.json").read_text())
        return cls(**saved | {"controller": ControllerState.from_dict(saved["controller"])})

    def write(self, folder: Path) -> None:
        values = vars(self) | {"controller": self.controller.to_dict()}
        (folder / "state.json").write_text(json.dumps(values, indent=1))


def path_of(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step_{step:06d}"


class Found(NamedTuple):
    """A folder of ours among the checkpoints."""

    step: int
    ending: str  # "", PARTIAL or DAMAGED
    folder: Path


def found(run_dir: Path) -> list[Found]:
    """Every checkpoint, oldest first. What has another name (somebody's copy, a link) is not ours:
    it is neither read nor removed."""
    folder = run_dir / FOLDER
    paths = [p for p in folder.iterdir() if not p.is_symlink()] if folder.is_dir() else []
    named = [(NAME.fullmatch(p.name), p) for p in paths if p.is_dir()]
    return sorted(Found(int(name[1]), name[2] or "", p) for name, p in named if name)


@dataclass
class Saving:
    """A checkpoint being written, each rank its files."""

    run: Run
    partial: Path  # its folder, until it is whole
    request: AsyncRequest
    sums: dict[str, str] = field(default_factory=dict)  # of this rank's files
    error: Exception | None = None
    thread: threading.Thread | None = None  # that writes while the run goes on

    def start(self) -> None:
        """Write this rank's files in a thread."""
        # a daemon: a run that ends for another reason does not wait for it
        self.thread = threading.Thread(target=self.write, name="checkpoint", daemon=True)
        self.thread.start()

    def is_under_way(self) -> bool:
        """Whether this rank's thread still writes."""
        return self.thread is not None and self.thread.is_alive()

    def write(self) -> None:
        """Write and hash this rank's files. What goes wrong is for ``finish`` to tell."""
        assert self.request.async_fn is not None
        self.request.async_fn()
        try:
            for path in self.partial.glob(f"{TRAINER}/__{dist.get_rank()}_*"):
                self.sums[str(path.relative_to(self.partial))] = _written(path)
        except OSError as error:
            self.error = error

    def finish(self) -> None:
        """Wait for every rank's files and give the checkpoint its name. Collective.

        Raises on every rank if one could not write, or not within ``trainer.collective_timeout_s``.
        """
        target = self.partial.with_suffix("")
        patience_s = self.run.recipe.trainer.collective_timeout_s
        with self.run.phases("checkpoint"):
            if self.thread is not None:
                self.thread.join(patience_s)
            if self.is_under_way():
                raise TimeoutError(f"{self.partial}: not written after {patience_s:.0f} s")
            self.run.trainer.finish_save(self.request)
            sums = self._everyones_sums()
        with self.run.phases("publish"):
            self.run.alone(f"publishing {target.name}", lambda zero: self._publish(target, sums))

    def _everyones_sums(self) -> dict[str, str]:
        """SHA-256 of every rank's files by their names, on every rank."""
        everyones: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, self.error or self.sums, distributed.control_group())
        for rank, part in enumerate(everyones):
            if isinstance(part, Exception):
                raise RuntimeError(
                    f"{self.partial}: rank {rank} could not hash its files"
                ) from part
        return {name: digest for part in everyones for name, digest in part.items()}

    def _publish(self, target: Path, sums: dict[str, str]) -> None:
        """Rank 0's part: sums of what no rank has hashed, the name, and what is older goes."""
        for path in sorted(p for p in self.partial.rglob("*") if p.is_file()):
            name = str(path.relative_to(self.partial))
            if name not in sums:
                sums[name] = _written(path)
        (self.partial / SUMS).write_text("".join(f"{sums[n]}  {n}\n" for n in sorted(sums)))
        _written(self.partial / SUMS)
        _rename(self.partial, target)
        _prune(self.run.run_dir, self.run.recipe.checkpoint.keep)


def begin(
    run: Run,
    step: int,
    controller: ControllerState,
    controls: Memory,
    logprob_gap: float | None,
    *,
    goes_on: bool,
) -> Saving:
    """Begin to write the run after ``step`` steps; ``Saving.finish`` is left to do. Collective.

    goes_on: the run does, while a copy of the state is written; else the files are written now.
    """
    target = path_of(run.run_dir, step)
    partial = target.with_name(target.name + PARTIAL)

    def make_room() -> None:
        shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed here
        (partial / TRAINER).mkdir(parents=True)
        journal = run.run_dir / JOURNAL_FILE
        LoopState(
            step=step,
            controller=controller,
            logprob_gap=logprob_gap,
            journal_bytes=journal.stat().st_size if journal.exists() else 0,
            mlflow_run_id=known_run_id(run.run_dir) or None,
            controls=controls,
        ).write(partial)
        (partial / "recipe.yaml").write_text(dump(run.recipe))

    with run.phases("checkpoint"):
        run.alone(f"room for {target.name}", lambda zero: make_room())
        saving = Saving(run, partial, run.trainer.begin_save(partial / TRAINER, copied=goes_on))
        if goes_on:
            saving.start()
        else:
            saving.write()
    return saving


def pick(run_dir: Path) -> Path:
    """The newest whole checkpoint. Newer ones that are damaged or half-written are named on stderr
    and set aside, under the name they had with ``.damaged``.

    Raises:
        CheckpointError: if there is none, or if the file system does not read one: that is no
            damage, and an older one would throw its steps away.
    """
    names = []
    for _, ending, folder in reversed(found(run_dir)):
        if ending == DAMAGED:  # found by an earlier start
            names.append(folder.stem)
            continue
        fault = "it was not finished" if ending == PARTIAL else _damage_if_read(folder)
        if not fault:
            return folder
        names.append(folder.name)
        print(f"aent: checkpoint {folder} is skipped: {fault}", file=sys.stderr)
        if not ending:
            _set_aside(folder)
    there = f"only damaged ones ({', '.join(names)})" if names else "none"
    raise CheckpointError(
        f"run_dir: no checkpoint to resume from in {run_dir / FOLDER}: {there}. To begin anew, "
        "name another run_dir"
    )


def _damage_if_read(folder: Path) -> str:
    try:
        return read_again(lambda: damage(folder))
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {folder} cannot be read ({error}): resume when the file system reads it "
            "again, or move it away to go on from an older one"
        ) from error


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _rename(folder, aside)
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be set aside: {error}") from error


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint's files, as a clause; empty if they are as written.

    Raises OSError where they cannot be read.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock alone
            digests = pool.map(_checksum, [folder / name for name in sums])
            for name, digest in zip(sums, digests):
                if digest != sums[name]:
                    return f"{name} is not what was written (SHA-256)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except ValueError as error:
        return f"{SUMS} is not what was written ({error})"
    return "" if sums else f"{SUMS} is empty"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written(path: Path) -> str:
    """SHA-256 of a file that is on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _checksum(path)


def _rename(source: Path, target: Path) -> None:
    """Rename a folder so that it lasts."""
    os.replace(source, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(run_dir: Path, keep: int) -> None:
    """Leave the newest ``keep`` checkpoints, and the rollouts of the steps after the oldest. What
    cannot be removed is named on stderr: it costs room, no run."""
    ours = found(run_dir)
    whole = [each for each in ours if not each.ending]
    for _, _, folder in [*whole[:-keep], *(each for each in ours if each.ending == PARTIAL)]:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            print(f"aent: {folder} cannot be removed: {error}", file=sys.stderr, flush=True)
    rollout_files.forget(run_dir, before=whole[-keep:][0].step)
