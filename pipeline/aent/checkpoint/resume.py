"""The point from which a run starts, decided before anything of it runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from aent.checkpoint import folders, rollout_files
from aent.checkpoint.folders import CheckpointError, LoopState
from aent.recipe.changes import changes
from aent.recipe.load import RecipeError, load_recorded
from aent.recipe.schema import Recipe
from aent.runtime import megatron
from aent.runtime.files import write_whole
from aent.runtime.log import log
from aent.tasks import trial
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE

START_FILE = "start.json"


def choose_start(recipe: Recipe, run_dir: Path, digests: Mapping[str, str] | None = None) -> None:
    """Decide where the run in ``run_dir`` starts, report it, and write it down for the ranks.

    With ``resume: never``, or ``auto`` before the run has begun, nothing is resumed. If the recipe,
    a file of a custom grader or a file of questions has changed, rollouts recorded for later steps
    are dropped: they belong to another policy, or to other rewards.

    digests: of checkpoint files that were just hashed (``folders.pick``).

    Raises:
        CheckpointError: one sentence per line: there is no complete checkpoint, or a change of the
            recipe would corrupt the run.
    """
    folder = None
    files = {"graders": trial.fingerprints(recipe.task)}
    files["data"] = trial.data_fingerprints(recipe.task)
    if recipe.resume == "required" or (recipe.resume == "auto" and has_begun(run_dir)):
        folder = folders.pick(run_dir, digests)
        if (why := megatron.reading_fault(folder / folders.TRAINER)) is not None:
            raise CheckpointError(why)
        state = _read_state(folder)
        changed = accept_changes(recipe, folder) | _say_changed_files(run_dir, files)
        log.info(f"aent: resumes after {state.step} steps, from {folder}")
        if changed:
            rollout_files.forget(run_dir, from_step=state.step)
        _keep_policy(run_dir, folder)
        path = run_dir / JOURNAL_FILE
        if (path.stat().st_size if path.exists() else 0) < state.journal_bytes:
            log.warning(
                f"aent: {path} is shorter than when the checkpoint was made: points of steps "
                "before it are missing"
            )
    first = started(run_dir) if recipe.resume != "never" else None
    if first is None and _read_start(run_dir) == {}:
        log.warning(
            f"aent: {run_dir / START_FILE} was damaged and is written again: a chat template that "
            "writes a date writes today's from now on"
        )
    start = {
        "checkpoint": folder and str(folder),
        "started": (first or datetime.now()).isoformat(timespec="seconds"),
        **files,
    }
    write_whole(run_dir / START_FILE, json.dumps(start))


def _say_changed_files(run_dir: Path, files: dict[str, dict[str, str]]) -> bool:
    """Report which files (of graders and data; ``files`` has their hashes by name) have changed
    since the run's last start; return whether any has."""
    start = _read_start(run_dir) or {}  # damaged, or written by an earlier version
    changed = False
    for kind, hashes in files.items():
        before = start.get(kind, {})
        for name in hashes:
            if before.get(name, hashes[name]) != hashes[name]:
                changed = True
                which = f"task.graders: the file of {name}" if kind == "graders" else name
                log.info(
                    f"aent: changed: {which} is not as at the run's last start: this may change "
                    "the result"
                )
    return changed


def chosen(run_dir: Path) -> Path | None:
    """The checkpoint that ``choose_start`` wrote down for the ranks; None: from the first step.

    Raises CheckpointError if its file is damaged and the run has begun: ranks that decided by
    themselves might decide differently.
    """
    start = _read_start(run_dir)
    if start is None:
        raise CheckpointError(f"{run_dir / START_FILE} is not there: aent train writes it")
    if "checkpoint" not in start:
        if has_begun(run_dir):
            raise CheckpointError(
                f"{run_dir / START_FILE} is damaged: start the run again, which writes it again"
            )
        return None
    return start["checkpoint"] and Path(start["checkpoint"])


def started(run_dir: Path) -> datetime | None:
    """When the run was first started, local time. A chat template that writes a date writes this
    one, so that a resumed run has the same prompts. None if it is not known."""
    try:
        return datetime.fromisoformat((_read_start(run_dir) or {})["started"])
    except (ValueError, KeyError, TypeError):  # missing, damaged, or of an older version
        return None


def _read_start(run_dir: Path) -> dict[str, Any] | None:
    """What ``choose_start`` wrote; empty if it is damaged (a machine lost its power), None if
    there is no file."""
    try:
        start = json.loads((run_dir / START_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return start if isinstance(start, dict) else {}


def is_run(folder: Path) -> bool:
    """Whether a run was started in this folder, even if it only wrote its first file: a start may
    be killed before it writes a recipe."""
    names = (START_FILE, "recipe.yaml")
    # the file's name while it is being written: runtime.files
    begun = any(folder.glob(f".{START_FILE}.*"))
    return begun or any((folder / name).is_file() for name in names)


def has_begun(run_dir: Path) -> bool:
    """Whether a step was ever begun here, or a checkpoint made before one."""
    if any(each.ending != folders.PARTIAL for each in folders.found(run_dir)):
        return True
    path = run_dir / JOURNAL_FILE  # exists even if no checkpoints were wanted
    trained = path.exists() and any(p.key == "update/loss" for p in journal.read(path))
    return trained or bool(rollout_files.recorded(run_dir))


def begun_otherwise(run_dir: Path, recipe: Recipe) -> list[str]:
    """Fields that matter in which the run in ``run_dir`` was begun with another recipe; empty if
    no run has begun. Raises RecipeError."""
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        return []
    return [str(c) for c in changes(load_recorded(path), recipe) if c.rule != "free"]


def accept_changes(recipe: Recipe, folder: Path) -> bool:
    """Report what differs from the checkpoint's recipe; return whether it may change the result.

    Raises CheckpointError naming every field that must not change.
    """
    try:
        found = changes(load_recorded(folder / "recipe.yaml"), recipe)
        found = [c for c in found if c.field != "resume"]  # a property of the start, not of the run
    except RecipeError as error:
        raise CheckpointError(f"this version of aent cannot read its recipe: {error}") from error
    refused = [c for c in found if c.rule == "same"]
    if refused:
        raise CheckpointError("\n".join(f"{c} (cannot change in a run)" for c in refused))
    for change in found:
        warning = ": this may change the result" if change.rule == "warn" else ""
        log.info(f"aent: changed: {change}{warning}")
    return any(c.rule == "warn" for c in found)


def _read_state(folder: Path) -> LoopState:
    try:
        return LoopState.read(folder)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"this version of aent cannot read {folder}: {error}") from error


def _keep_policy(run_dir: Path, folder: Path) -> None:
    """Move away a policy that the run saved at an earlier end, to make room for the next one."""
    policy, aside = run_dir / "policy", run_dir / f"policy-{folder.name}"
    if policy.exists():
        shutil.rmtree(aside, ignore_errors=True)  # its name if the run ends at this step again
        os.replace(policy, aside)
        log.info(f"aent: the policy of an earlier end is now {aside}")
