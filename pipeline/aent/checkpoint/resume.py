"""From which point a run starts, decided before anything of it runs."""

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
    """Find where the run in ``run_dir`` starts, say so, and leave it there for the ranks.

    Nothing is resumed with ``resume: never``, nor with ``auto`` before the run has begun. With a
    changed recipe, or a changed file of a grader's function or of questions, the rollouts that were
    recorded for later steps are dropped: they are another policy's, or otherwise rewarded.

    digests: of checkpoint files that were hashed just now (``folders.pick``).

    Raises:
        CheckpointError: one sentence per line: no whole checkpoint, or a change of the recipe that
            would corrupt the run.
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
            f"aent: {run_dir / START_FILE} was not whole and is written anew: a chat template that "
            "writes a date writes today's from here on"
        )
    start = {
        "checkpoint": folder and str(folder),
        "started": (first or datetime.now()).isoformat(timespec="seconds"),
        **files,
    }
    write_whole(run_dir / START_FILE, json.dumps(start))


def _say_changed_files(run_dir: Path, files: dict[str, dict[str, str]]) -> bool:
    """Say which files (of graders, of data; their hashes by name) are not those of the run's last
    start; return whether any is."""
    start = _read_start(run_dir) or {}  # torn, or an earlier version's
    changed = False
    for kind, hashes in files.items():
        before = start.get(kind, {})
        for name in hashes:
            if before.get(name, hashes[name]) != hashes[name]:
                changed = True
                which = f"task.graders: the file of {name}" if kind == "graders" else name
                log.info(
                    f"aent: changed: {which} is not that of the run's last start: this may change "
                    "what is learnt"
                )
    return changed


def chosen(run_dir: Path) -> Path | None:
    """The checkpoint that ``choose_start`` left for the ranks; None: from the first step.

    Raises CheckpointError where its file is torn and the run has begun: ranks that chose for
    themselves might choose differently.
    """
    start = _read_start(run_dir)
    if start is None:
        raise CheckpointError(f"{run_dir / START_FILE} is not there: aent train writes it")
    if "checkpoint" not in start:
        if has_begun(run_dir):
            raise CheckpointError(
                f"{run_dir / START_FILE} is not whole: start the run again, which writes it anew"
            )
        return None
    return start["checkpoint"] and Path(start["checkpoint"])


def started(run_dir: Path) -> datetime | None:
    """When the run was started for the first time, local time: a chat template that writes a date
    writes this one, so that a resumed run has the same prompts. None where that is not known."""
    try:
        return datetime.fromisoformat((_read_start(run_dir) or {})["started"])
    except (ValueError, KeyError, TypeError):  # none yet, torn, an older version
        return None


def _read_start(run_dir: Path) -> dict[str, Any] | None:
    """What ``choose_start`` wrote; empty where it is torn (a machine lost its power), None where
    there is nothing."""
    try:
        start = json.loads((run_dir / START_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return start if isinstance(start, dict) else {}


def is_run(folder: Path) -> bool:
    """Whether a run was started in this folder, as far as its first file at least: a start may be
    killed before there is a recipe."""
    names = (START_FILE, "recipe.yaml")
    # while it is written: runtime.files
    begun = any(folder.glob(f".{START_FILE}.*"))
    return begun or any((folder / name).is_file() for name in names)


def has_begun(run_dir: Path) -> bool:
    """Whether a step was ever begun here, or a checkpoint made before it."""
    if any(each.ending != folders.PARTIAL for each in folders.found(run_dir)):
        return True
    path = run_dir / JOURNAL_FILE  # says so too where no checkpoints were wanted
    trained = path.exists() and any(p.key == "update/loss" for p in journal.read(path))
    return trained or bool(rollout_files.recorded(run_dir))


def begun_otherwise(run_dir: Path, recipe: Recipe) -> list[str]:
    """In which fields that matter a run in ``run_dir`` was begun with another recipe; empty where
    none has begun. Raises RecipeError."""
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        return []
    return [str(c) for c in changes(load_recorded(path), recipe) if c.rule != "free"]


def accept_changes(recipe: Recipe, folder: Path) -> bool:
    """Say what differs from the checkpoint's recipe; return whether it may change what is learnt.

    Raises CheckpointError naming every field that must not change.
    """
    try:
        found = changes(load_recorded(folder / "recipe.yaml"), recipe)
        found = [c for c in found if c.field != "resume"]  # how it is started, not what it is
    except RecipeError as error:
        raise CheckpointError(f"this version of aent cannot read its recipe: {error}") from error
    refused = [c for c in found if c.rule == "same"]
    if refused:
        raise CheckpointError("\n".join(f"{c} (cannot change in a run)" for c in refused))
    for change in found:
        warning = ": this may change what is learnt" if change.rule == "warn" else ""
        log.info(f"aent: changed: {change}{warning}")
    return any(c.rule == "warn" for c in found)


def _read_state(folder: Path) -> LoopState:
    try:
        return LoopState.read(folder)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"this version of aent cannot read {folder}: {error}") from error


def _keep_policy(run_dir: Path, folder: Path) -> None:
    """A policy that the run has saved at an earlier end makes room for the one to come."""
    policy, aside = run_dir / "policy", run_dir / f"policy-{folder.name}"
    if policy.exists():
        shutil.rmtree(aside, ignore_errors=True)  # the same, where a run ends there once more
        os.replace(policy, aside)
        log.info(f"aent: the policy of an earlier end is {aside} now")
