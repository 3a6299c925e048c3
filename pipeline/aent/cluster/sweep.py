"""The runs of a sweep, shown together: one MLflow run above them."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

from aent.recipe.check import run_folder
from aent.recipe.schema import Recipe
from aent.tracking.store import RUN_ID_FILE, experiment_id, open_client, tracking_uri

LOCK_S = 300.0  # for another job to make the run: some requests to MLflow, with 30 s each
POLL_S = 0.2


class SweepError(RuntimeError):
    """The sweep's run cannot be made; the message is one sentence."""


def parent_run(sweep_dir: Path, recipe: Recipe) -> str:
    """The id of the sweep's MLflow run, made by whichever of its jobs asks first.

    It lies in ``sweep_dir`` and holds nothing of its own; so it is FINISHED from the beginning.

    Raises SweepError: MLflow, which has to be there for this once, is away, or another job hangs.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    file = sweep_dir / RUN_ID_FILE
    with (sweep_dir / "lock").open("w") as lock:
        _wait_for(lock)
        if not file.exists():
            uri = tracking_uri(recipe, run_folder(recipe))
            try:
                file.write_text(_make(uri, recipe.tracking.experiment, sweep_dir.name))
            except Exception as error:  # whatever MLflow and its store raise
                why = " ".join(str(error).split())[:500]
                raise SweepError(
                    f"{_named(uri, recipe)} does not take the run above the others, without which "
                    f"none begins: {why}"
                ) from error
        return file.read_text().strip()


def _wait_for(lock: TextIO) -> None:
    """Take the lock, until the file is closed."""
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SweepError(
                    f"{lock.name}: for {LOCK_S:g} s another job has been making the run above the "
                    "others: it hangs"
                ) from None
            time.sleep(POLL_S)


def _make(uri: str, experiment: str, name: str) -> str:
    client = open_client(uri)
    run = client.create_run(experiment_id(client, uri, experiment), run_name=name)
    client.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id


def _named(uri: str, recipe: Recipe) -> str:
    """The store, with the name of what has given it."""
    if recipe.tracking.uri:
        return f"tracking.uri={uri}"
    return f"MLFLOW_TRACKING_URI={uri}" if os.environ.get("MLFLOW_TRACKING_URI") else uri
