"""The runs of a sweep: one for each line of a file; shown together, below one MLflow run."""

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

LOCK_S = 300.0  # for another job to make the run: some requests to MLflow, with 30 s each


OURS = ("run_dir", "resume", "tracking.parent_run_id")  # not for a line to say


def planned(
    source: str, variants: Path, overrides: Sequence[str], folder: Path
) -> list[ScriptedRun]:
    """The runs that are not finished, of those that the lines of ``variants`` ask for: overrides,
    as on a command line, behind ``overrides``. Line N has its run in ``folder/line-N``; a blank one
    has none.

    Raises RecipeError, one line per fault, which names the line of the file.
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
        except ValueError as error:  # RecipeError is one; a quote without its other one
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
    """The sweep's run cannot be made; the message is one sentence."""


def parent_run(sweep_dir: Path, recipe: Recipe) -> str:
    """The id of the sweep's MLflow run, made by whichever of its jobs asks first.

    It lies in ``sweep_dir`` and holds nothing of its own; so it is FINISHED from the beginning.

    Raises SweepError: MLflow, which has to be there for this once, is away, another job hangs, or
    the folder cannot be written.
    """
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        with locked(sweep_dir / "lock", LOCK_S, "make the run above the others: it hangs"):
            if not known_run_id(sweep_dir):
                write_whole(sweep_dir / RUN_ID_FILE, _made(recipe, sweep_dir.name))
            return known_run_id(sweep_dir)
    except OSError as error:
        raise SweepError(str(error)) from error


def _made(recipe: Recipe, name: str) -> str:
    uri = tracking_uri(recipe, run_folder(recipe))
    try:
        return _make(uri, recipe.tracking.experiment, name)
    except Exception as error:  # whatever MLflow and its store raise
        why = redacted(" ".join(str(error).split())[:500])
        raise SweepError(
            f"{_named(uri, recipe)} does not take the run above the others, without which "
            f"none begins: {why}"
        ) from error


def _make(uri: str, experiment: str, name: str) -> str:
    client = open_client(uri)
    run = client.create_run(experiment_id(client, uri, experiment), run_name=name)
    client.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id


def _named(uri: str, recipe: Recipe) -> str:
    """The store, with the name of what has given it."""
    uri = redacted(uri)
    if recipe.tracking.uri:
        return f"tracking.uri={uri}"
    return f"MLFLOW_TRACKING_URI={uri}" if os.environ.get("MLFLOW_TRACKING_URI") else uri
