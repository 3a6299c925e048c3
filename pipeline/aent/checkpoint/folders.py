"""The state of the whole loop, saved and restored as one thing.

``run_dir/checkpoints/step_000010/`` is the run after 10 steps: step 10 comes next, and the weight
version is 10. It contains:

- ``state.json``: the fields of ``LoopState``;
- ``recipe.yaml``: the recipe of the run that wrote it;
- ``trainer/``: model, optimizer, schedule and random streams (``trainer.state``);
- ``SHA256SUMS``: checksums of all other files (``sha256sum -c`` reads it).

It is written under a temporary name and renamed when it is complete. With
``checkpoint.asynchronous``, a thread of each rank writes it while the run continues. There is no
data cursor: a step's prompts and seeds are functions of the run's seed and the step
(``orchestrator.sampling``), and with a curriculum also of what earlier steps recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aent.checkpoint import rollout_files
from aent.entropy.controllers import ControllerState
from aent.runtime.files import read_again
from aent.runtime.log import log

if TYPE_CHECKING:
    from aent.algorithm.entropy_controls import Memory

FOLDER = "checkpoints"
TRAINER = "trainer"  # the trainer's files
SUMS = "SHA256SUMS"
PARTIAL = ".partial"  # while it is being written
DAMAGED = ".damaged"  # set aside: its files are not as written
NAME = re.compile(r"step_(\d{6,})(\.partial|\.damaged)?")


# by index: (times asked, last step it was asked in, success rate then), kept by tasks.curriculum
Questions = dict[str, list[Any]]


class CheckpointError(RuntimeError):
    """A run cannot be resumed from what is on disk."""


@dataclass(frozen=True)
class LoopState:
    """The loop's state, except for the trainer's."""

    step: int  # number of steps done; also the number of the next step, and the weight version
    controller: ControllerState
    logprob_gap: float | None  # of the last step, trainer against engine; None before the first
    journal_bytes: int  # length of the journal, which has every point of the steps done
    mlflow_run_id: str | None  # None if no server has been reached yet
    controls: Memory = field(default_factory=dict)  # memory of the entropy controls, by kind
    questions: Questions = field(default_factory=dict)  # what a curriculum knows of each

    @classmethod
    def read(cls, folder: Path) -> LoopState:
        """Raises KeyError or TypeError if the state was written by another version of aent."""
        saved = json.loads((folder / "state.json").read_text())
        return cls(**saved | {"controller": ControllerState.from_dict(saved["controller"])})

    def write(self, folder: Path) -> None:
        values = vars(self) | {"controller": self.controller.to_dict()}
        (folder / "state.json").write_text(json.dumps(values, indent=1))


def path_of(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step_{step:06d}"


class Found(NamedTuple):
    """A folder among the checkpoints that has one of our names."""

    step: int
    ending: str  # "", PARTIAL or DAMAGED
    folder: Path


def found(run_dir: Path) -> list[Found]:
    """Every checkpoint, oldest first. A folder with another name (a copy, a link) is not ours:
    it is neither read nor removed."""
    folder = run_dir / FOLDER
    paths = [p for p in folder.iterdir() if not p.is_symlink()] if folder.is_dir() else []
    named = [(NAME.fullmatch(p.name), p) for p in paths if p.is_dir()]
    return sorted(Found(int(name[1]), name[2] or "", p) for name, p in named if name)


def pick(run_dir: Path, digests: Mapping[str, str] | None = None) -> Path:
    """The newest complete checkpoint. Newer ones that are damaged or incomplete are named on stderr
    and renamed, with ``.damaged`` at the end.

    digests: SHA-256, by path, of files that were just hashed; other files are hashed here.

    Raises:
        CheckpointError: if there is none, or if the file system cannot read one. A read error is
            not damage, and resuming from an older checkpoint would lose steps.
    """
    names, known = [], digests or {}
    for _, ending, folder in reversed(found(run_dir)):
        if ending == DAMAGED:  # set aside by an earlier start
            names.append(folder.stem)
            continue
        fault = "it was not finished" if ending == PARTIAL else _damage_if_read(folder, known)
        if not fault:
            return folder
        names.append(folder.name)
        log.warning(f"aent: checkpoint {folder} is skipped: {fault}")
        if not ending:
            _set_aside(folder)
    there = f"only damaged ones ({', '.join(names)})" if names else "none"
    raise CheckpointError(
        f"run_dir: no checkpoint to resume from in {run_dir / FOLDER}: {there}. To begin anew, "
        "name another run_dir"
    )


def _damage_if_read(folder: Path, digests: Mapping[str, str]) -> str:
    try:
        return read_again(lambda: damage(folder, digests))
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {folder} cannot be read ({error}): resume when the file system can read "
            "it, or move it away to continue from an older one"
        ) from error


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        rename(folder, aside)
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be set aside: {error}") from error


def written_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files, by name, as recorded when it was written. Raises OSError, or
    ValueError if the file of sums is damaged."""
    lines = (folder / SUMS).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def damage(folder: Path, digests: Mapping[str, str] | None = None) -> str:
    """What is wrong with a checkpoint's files, as a clause; empty if they are as written.

    digests: as for ``pick``. Raises OSError if files cannot be read.
    """
    known = digests or {}
    try:
        sums = written_sums(folder)
        with ThreadPoolExecutor() as pool:  # hashing releases Python's lock
            paths = [folder / name for name in sums]
            found = pool.map(lambda path: known.get(str(path)) or checksum(path), paths)
            for name, digest in zip(sums, found):
                if digest != sums[name]:
                    return f"{name} is not what was written (SHA-256)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except ValueError as error:
        return f"{SUMS} is not what was written ({error})"
    return "" if sums else f"{SUMS} is empty"


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def written(path: Path) -> str:
    """SHA-256 of a file, which is on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return checksum(path)


def rename(source: Path, target: Path) -> None:
    """Rename a folder durably."""
    os.replace(source, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(run_dir: Path, keep: int) -> None:
    """Keep the newest ``keep`` checkpoints, and the rollouts of all steps after the oldest of them.
    What cannot be removed is named on stderr: it takes up space but does not harm the run."""
    ours = read_again(lambda: found(run_dir))
    whole = [each for each in ours if not each.ending]
    for _, _, folder in [*whole[:-keep], *(each for each in ours if each.ending == PARTIAL)]:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            log.warning(f"aent: {folder} cannot be removed: {error}")
    rollout_files.forget(run_dir, before=whole[-keep:][0].step)
