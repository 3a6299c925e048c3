"""The runs of a sweep, shown together: one MLflow run above them."""

from __future__ import annotations

import fcntl
from pathlib import Path

from aent.recipe.check import run_folder
from aent.recipe.schema import Recipe
from aent.tracking.store import RUN_ID_FILE, experiment_id, open_client, tracking_uri


def parent_run(sweep_dir: Path, recipe: Recipe) -> str:
    """The id of the sweep's MLflow run, made by whichever of its jobs asks first.

    It lies in ``sweep_dir`` and holds nothing of its own; so it is FINISHED from the beginning.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    file = sweep_dir / RUN_ID_FILE
    with (sweep_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not file.exists():
            uri = tracking_uri(recipe, run_folder(recipe))
            client = open_client(uri)
            experiment = experiment_id(client, uri, recipe.tracking.experiment)
            run = client.create_run(experiment, run_name=sweep_dir.name)
            client.set_terminated(run.info.run_id, "FINISHED")
            file.write_text(run.info.run_id)
        return file.read_text().strip()
