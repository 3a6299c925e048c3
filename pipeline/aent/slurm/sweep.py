"""The runs of a sweep: one for each line of a file, all below one parent run in MLflow."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from aent.checkpoint.resume import begun_otherwise
from aent.checks.recipe import check
from aent.recipe.folder import run_folder
from aent.recipe.load import RecipeError, load
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.runtime.files import locked, write_whole
from aent.slurm.render import ScriptedRun
from aent.tracking import journal
from aent.tracking.address import tracking_uri
from aent.tracking.journal import JOURNAL_FILE
from aent.tracking.store import RUN_ID_FILE, experiment_id, known_run_id, open_client

# seconds for another job to create the parent run: a few requests to MLflow of 30 s each
LOCK_S = 300.0


OURS = ("run_dir", "resume", "tracking.parent_run_id")  # a line may not set these


def planned(
    source: str, variants: Path, overrides: Sequence[str], folder: Path
) -> list[ScriptedRun]:
    """The unfinished runs of a sweep. Each line of ``variants`` has the overrides of one run, as on
    a command line; they follow ``overrides``. The run of line N is in ``folder/line-N``; a blank
    line has none.

    Raises RecipeError, one line per fault, naming the line of the file.
    """
    try:
        lines = variants.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{variants}: {error}") from error
    runs: list[ScriptedRun] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        run_dir = folder / f"line-{number}"
        try:
            of_run, recipe = _of_line(source, [*overrides, *shlex.split(line)], run_dir)
            faults += (f"{variants}: line {number}: {fault}" for fault in _faults(recipe))
        except ValueError as error:  # also RecipeError, and an unclosed quote
            faults += (f"{variants}: line {number}: {fault}" for fault in str(error).splitlines())
            continue
        if journal.last_status(run_dir / JOURNAL_FILE) != "FINISHED":
            runs.append((source, of_run, recipe))
    if not any(line.strip() for line in lines):
        faults.append(f"{variants} has no line with overrides: nothing to run")
    if faults:
        raise RecipeError("\n".join(faults))
    return runs


def _of_line(source: str, overrides: list[str], run_dir: Path) -> tuple[list[str], Recipe]:
    for override in overrides:
        if override.partition("=")[0] in OURS:
            raise ValueError(f"override {override}: a sweep sets it for every run")
    recipe = load(data_path(source), overrides)
    return overrides, recipe.model_copy(update={"run_dir": str(run_dir), "resume": "auto"})


def _faults(recipe: Recipe) -> Iterator[str]:
    yield from check(recipe, machine=False)
    for change in begun_otherwise(run_folder(recipe), recipe):
        yield f"{run_folder(recipe)}: {change}: name another folder (--out)"


class SweepError(RuntimeError):
    """The sweep's parent run cannot be created; the message is one sentence."""


def parent_run(sweep_dir: Path, recipe: Recipe) -> str:
    """The id of the sweep's parent run in MLflow, created by the first of its jobs that asks.

    The id is kept in ``sweep_dir``. The run records nothing itself, so its status is FINISHED.

    Raises SweepError if MLflow is unreachable (it is needed here), another job hangs, or the folder
    cannot be written.
    """
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        with locked(sweep_dir / "lock", LOCK_S, "create the parent run of the others: it hangs"):
            if not known_run_id(sweep_dir):
                write_whole(sweep_dir / RUN_ID_FILE, _made(recipe, sweep_dir.name))
            return known_run_id(sweep_dir)
    except OSError as error:
        raise SweepError(str(error)) from error


def _made(recipe: Recipe, name: str) -> str:
    uri = tracking_uri(recipe, run_folder(recipe))
    try:
        return _make(uri, recipe.tracking.experiment, name)
    except Exception as error:  # anything that MLflow and its store raise
        why = redacted(" ".join(str(error).split())[:500])
        raise SweepError(
            f"{_named(uri, recipe)}  cannot create the parent run, without which no "
            f"run begins: {why}"
        ) from error


def _make(uri: str, experiment: str, name: str) -> str:
    client = open_client(uri)
    run = client.create_run(experiment_id(client, uri, experiment), run_name=name)
    client.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id


def _named(uri: str, recipe: Recipe) -> str:
    """The store, with the name of the field or variable that set it."""
    uri = redacted(uri)
    if recipe.tracking.uri:
        return f"tracking.uri={uri}"
    return f"MLFLOW_TRACKING_URI={uri}" if os.environ.get("MLFLOW_TRACKING_URI") else uri
