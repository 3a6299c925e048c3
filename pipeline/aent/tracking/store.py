"""One run in MLflow. Everything here may wait for a server and raises what MLflow raises."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aent.recipe.load import Scalar, dump, flatten
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.files import read_again
from aent.tracking import journal, sqlite
from aent.tracking.address import check_supported, tracking_uri
from aent.tracking.client import mlflow_client
from aent.tracking.journal import JOURNAL_FILE, Point
from aent.tracking.refused import deliver

RUN_ID_FILE = "mlflow_run_id"
RUN_KEY_TAG = "aent.run_key"
SOURCE_TAG, SOURCE = "mlflow.source.name", "aent train"
# MLflow's limits (mlflow.utils.validation)
PARAMS_PER_BATCH = 100
POINTS_PER_BATCH = 1000
KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
TABLE_FOLDERS = ("samples", "heldout")
TABLES_TAG = "mlflow.loggedArtifacts"  # by this tag MLflow's pages know which artifacts are tables
TABLES_IN_TAG = 100  # the newest: a tag holds 8000 characters


def known_run_id(folder: Path) -> str:
    """The id of this folder's run in MLflow; empty if unknown."""
    path = folder / RUN_ID_FILE
    return read_again(path.read_text).strip() if path.is_file() else ""


class Store:
    """A run in MLflow, open for writing."""

    def __init__(self, uri: str, run_id: str = "") -> None:
        self.client = open_client(uri)
        self.uri, self.run_id = uri, run_id
        self._tables: list[dict[str, str]] = []

    @classmethod
    def create(cls, recipe: Recipe, run_dir: Path) -> Store:
        """A new run in the recipe's experiment, which is created if it does not exist.

        A folder has one run: if an earlier attempt created it but got no answer, it is found again.
        """
        store = cls(tracking_uri(recipe, run_dir))
        experiment = experiment_id(store.client, store.uri, recipe.tracking.experiment)
        key = _run_key(run_dir)
        found = store.client.search_runs(
            [experiment],
            f"tags.`{RUN_KEY_TAG}` = '{key}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        run = found[0] if found else None
        if run is None:
            # a run may begin before its server: it must not seem to end before it starts
            began = next((e.time for e, _ in journal.entries(run_dir / JOURNAL_FILE) if e), None)
            tags = {RUN_KEY_TAG: key}
            run = store.client.create_run(experiment, began, tags, recipe.name)
        store.run_id = run.info.run_id
        return store

    def describe(self, recipe: Recipe) -> list[tuple[str, str]]:
        """Write tags and parameters, also after a resume, when they may differ. Returns those that
        the server refuses, each with its answer.

        MLflow's parameters cannot change, so a changed one becomes a tag ``aent.changed.NAME``.
        """
        from mlflow.entities import Param, RunTag

        def send_params(some: Sequence[Param]) -> None:
            self.client.log_batch(self.run_id, params=some)

        def send_tags(some: Sequence[RunTag]) -> None:
            self.client.log_batch(self.run_id, tags=some)

        there = self.client.get_run(self.run_id).data
        parameters = {_param_name(k): _param_text(v) for k, v in flatten(recipe).items()}
        new = [Param(k, v) for k, v in parameters.items() if k not in there.params]
        refused: list[tuple[str, str]] = []
        for start in range(0, len(new), PARAMS_PER_BATCH):
            batch = new[start : start + PARAMS_PER_BATCH]
            found = deliver(batch, send_params, self.prove_writable)
            refused += [(f"the parameter {param.key}", why) for param, why in found]
        tags = _tags(recipe) | {
            f"aent.changed.{k}": v for k, v in parameters.items() if there.params.get(k, v) != v
        }
        texts = [RunTag(k, v) for k, v in tags.items()]
        not_taken = deliver(texts, send_tags, self.prove_writable)
        return refused + [(f"the tag {tag.key}", why) for tag, why in not_taken]

    def prove_writable(self) -> None:
        """Write a tag that every run of ours has; raises what MLflow raises if it is not taken."""
        self.client.set_tag(self.run_id, SOURCE_TAG, SOURCE)

    def begin_uploads(self, recipe: str) -> None:
        """Upload the recipe as an artifact, and read which tables MLflow already has."""
        self.client.log_text(self.run_id, recipe, "recipe.yaml")
        tags = self.client.get_run(self.run_id).data.tags
        self._tables = json.loads(tags.get(TABLES_TAG, "[]"))

    def log_points(self, points: Sequence[Point]) -> None:
        """Log at most ``POINTS_PER_BATCH`` points; sending a point again changes nothing."""
        from mlflow.entities import Metric

        metrics = [Metric(p.key[:KEY_LENGTH], p.value, p.time, p.step) for p in points]
        self.client.log_batch(self.run_id, metrics=metrics)

    def upload(self, path: Path, folder: str | None) -> None:
        """Copy a file to ``folder`` of the run's artifacts; tables can be browsed."""
        self.client.log_artifact(self.run_id, str(path), folder)
        if folder in TABLE_FOLDERS:
            table = {"path": f"{folder}/{path.name}", "type": "table"}
            tables = [t for t in self._tables if t != table] + [table]
            self._tables = sorted(tables, key=lambda t: t["path"])[-TABLES_IN_TAG:]
            self.client.set_tag(self.run_id, TABLES_TAG, json.dumps(self._tables))

    def set_tag(self, tag: str, text: str) -> None:
        """A tag of the run; the newest text counts."""
        self.client.set_tag(self.run_id, tag, text[:TAG_LENGTH])

    def set_status(self, status: str, time_ms: int) -> None:
        """Set the status: RUNNING, or one of MLflow's final ones, reached at ``time_ms``."""
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            self.client.set_terminated(self.run_id, status, time_ms)


def open_client(uri: str) -> Any:
    """MLflow's client for this store. A missing SQLite file is created.

    Raises AddressError, StoreError, and what MLflow raises.
    """
    check_supported(uri)
    if (path := sqlite.file_of(uri)) is not None:
        sqlite.make_ready(path)
    return mlflow_client(uri)


def experiment_id(client: Any, uri: str, name: str) -> str:
    """Id of the experiment; a new one in a SQLite file keeps its artifacts beside that file."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith("sqlite:///"):
        location = Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, location and location.as_uri())
        except MlflowException as error:
            # another run may have created it at the same moment; else report the store's reason
            found = client.get_experiment_by_name(name)
            if found is None:
                raise RuntimeError(
                    f"tracking.experiment={name}: {redacted(uri)} cannot create it: {error.message}"
                ) from error
    if found.lifecycle_stage != "active":
        raise RuntimeError(f"tracking.experiment: {name} was deleted in {redacted(uri)}")
    return found.experiment_id


def _param_name(key: str) -> str:
    return re.sub(r"[^/\w.\- :]", "_", key)[:KEY_LENGTH]


def _param_text(value: Scalar) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 3] + "..."


def _run_key(run_dir: Path) -> str:
    """A key that is the same for every attempt to create the run of this folder, and for no other
    run."""
    with (run_dir / JOURNAL_FILE).open("rb") as file:
        first = file.readline()
    return hashlib.sha256(str(run_dir.absolute()).encode() + b"\0" + first).hexdigest()


def _tags(recipe: Recipe) -> dict[str, str]:
    tags = {
        SOURCE_TAG: SOURCE,
        "aent.recipe_sha256": hashlib.sha256(dump(recipe).encode()).hexdigest(),
        "aent.hosts": _hosts(),
    }
    if "SLURM_JOB_ID" in os.environ:
        tags["aent.slurm_job_id"] = os.environ["SLURM_JOB_ID"]
    if recipe.tracking.parent_run_id is not None:
        tags["mlflow.parentRunId"] = recipe.tracking.parent_run_id
    with contextlib.suppress(KeyError, OSError):  # a user id without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags | dict(_image_tags()) | dict(_git_tags())


def _hosts() -> str:
    """Slurm's node lists (one per part of a heterogeneous job), else this machine's name."""
    lists = {v: None for k, v in sorted(os.environ.items()) if k.startswith("SLURM_JOB_NODELIST")}
    return ",".join(lists) or socket.gethostname()


def _image_tags() -> Iterator[tuple[str, str]]:
    """The container images of a Slurm job and their digests, from its batch script."""
    for whose in ("", "engine_"):
        for what in ("image", "image_digest"):
            if value := os.environ.get(f"AENT_{whose}{what}".upper()):
                yield f"aent.{whose}{what}", value


def _git_tags() -> Iterator[tuple[str, str]]:
    """The commit of this checkout. For an installed package: the commit that its image was built
    from, if the build recorded it."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # not another repository that contains this folder
        git("ls-files", "--error-unmatch", "__init__.py")
        yield "mlflow.source.git.commit", git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", ".")
        yield "aent.uncommitted_changes", "true" if dirty else "false"
    except (OSError, subprocess.SubprocessError):
        if commit := os.environ.get("AENT_GIT_COMMIT"):
            yield "mlflow.source.git.commit", commit
