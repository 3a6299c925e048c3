"""The runs of a sweep, shown together: one MLflow run above them."""

from __future__ import annotations

import os
from pathlib import Path

from aent.recipe.folder import run_folder
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.files import locked, write_whole
from aent.tracking.address import tracking_uri
from aent.tracking.store import RUN_ID_FILE, experiment_id, known_run_id, open_client

LOCK_S = 300.0  # for another job to make the run: some requests to MLflow, with 30 s each


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
