"""One run in MLflow. Everything here may wait for a server and raises what MLflow raises."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aent.recipe.load import Scalar, dump, flatten
from aent.recipe.schema import Recipe
from aent.tracking.journal import Point

RUN_ID_FILE = "mlflow_run_id"
TERMINAL = ("FINISHED", "FAILED", "KILLED")
# MLflow's limits (mlflow.utils.validation)
PARAMS_PER_BATCH = 100
POINTS_PER_BATCH = 1000
KEY_LENGTH = 250
PARAM_LENGTH = 6000
TABLES_TAG = "mlflow.loggedArtifacts"  # tells MLflow's pages which artifacts are tables
TABLES_IN_TAG = 100  # the newest: a tag holds 8000 characters


def tracking_uri(recipe: Recipe, run_dir: Path) -> str:
    """The recipe's store, else MLFLOW_TRACKING_URI's, else a SQLite file beside the runs."""
    given = recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{run_dir.absolute().parent / 'mlflow.db'}"


def look_command(uri: str) -> str:
    """What a person types, or opens, to look at the store."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


class Store:
    """A run of MLflow's, open for writing."""

    def __init__(self, uri: str, run_id: str = "") -> None:
        self.client = open_client(uri)
        self.uri, self.run_id = uri, run_id
        self._tables: list[dict[str, str]] = []

    @classmethod
    def create(cls, recipe: Recipe, run_dir: Path) -> Store:
        """Make the experiment if it is not there, and a run in it with parameters and tags.

        The run's id is written to ``run_dir/mlflow_run_id``.
        """
        store = cls(tracking_uri(recipe, run_dir))
        experiment = _experiment(store.client, store.uri, recipe.tracking.experiment)
        created = store.client.create_run(experiment, run_name=recipe.name, tags=_tags(recipe))
        store.run_id = created.info.run_id
        (run_dir / RUN_ID_FILE).write_text(store.run_id + "\n")
        store.log_parameters(flatten(recipe))
        store.client.log_text(store.run_id, dump(recipe), "recipe.yaml")
        return store

    def log_parameters(self, parameters: dict[str, Scalar]) -> None:
        """Log flat parameters, shortened to MLflow's limits."""
        from mlflow.entities import Param

        entities = [
            Param(re.sub(r"[^/\w.\- :]", "_", key)[:KEY_LENGTH], _param_text(value))
            for key, value in parameters.items()
        ]
        for start in range(0, len(entities), PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=entities[start : start + PARAMS_PER_BATCH])

    def log_points(self, points: Sequence[Point]) -> None:
        """Log at most ``POINTS_PER_BATCH`` points; those already there change nothing."""
        from mlflow.entities import Metric

        metrics = [Metric(p.key[:KEY_LENGTH], p.value, p.time, p.step) for p in points]
        self.client.log_batch(self.run_id, metrics=metrics)

    def upload(self, path: Path, folder: str | None) -> None:
        """Copy a file to the run's artifacts, into ``folder`` of them; tables can be browsed."""
        self.client.log_artifact(self.run_id, str(path), folder)
        if folder == "samples":
            self._tables.append({"path": f"{folder}/{path.name}", "type": "table"})
            value = json.dumps(self._tables[-TABLES_IN_TAG:])
            self.client.set_tag(self.run_id, TABLES_TAG, value)

    def status(self) -> str:
        """RUNNING, or one of ``TERMINAL``."""
        return self.client.get_run(self.run_id).info.status

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


def open_client(uri: str) -> Any:
    """MLflow's client of this store, without its chatter."""
    # before the import: MLflow's usage reports are started by it
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # a new database's migrations, one line each
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _experiment(client: Any, uri: str, name: str) -> str:
    """Id of the experiment; a new one in a SQLite file keeps its artifacts beside that file."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith("sqlite:///"):
        location = Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts"
    found = client.get_experiment_by_name(name)
    if found is None:
        # another run may make it at this very moment: then it is there below
        with contextlib.suppress(MlflowException):
            return client.create_experiment(name, location and location.as_uri())
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise RuntimeError(f"tracking.experiment: {name} was deleted in {look_command(uri)}")
    return found.experiment_id


def _param_text(value: Scalar) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 3] + "..."


def _tags(recipe: Recipe) -> dict[str, str]:
    tags = {
        "mlflow.source.name": "aent train",
        "aent.recipe_sha256": hashlib.sha256(dump(recipe).encode()).hexdigest(),
    }
    with contextlib.suppress(KeyError, OSError):  # a user id without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags | dict(_git_tags())


def _git_tags() -> Iterator[tuple[str, str]]:
    """The commit this package was checked out at, if it was."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # not some other repository around us
        yield "mlflow.source.git.commit", git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", ".")
        yield "aent.uncommitted_changes", "true" if dirty else "false"
