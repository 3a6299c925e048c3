"""Where MLflow is: the run's own address, which may hold a password, and what is shown of it.

Nothing that others read shows a password: not a log, not MLflow, not ``recipe.yaml``. The processes
of a run find the whole address in ``run_dir/mlflow_uri`` (mode 600), as the start has found it; so
a later process whose environment has lost MLFLOW_TRACKING_URI does not begin another store.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from aent.recipe.redact import HIDDEN, redacted
from aent.recipe.schema import Recipe
from aent.runtime.files import write_whole
from aent.runtime.log import log

ADDRESS_FILE = "mlflow_uri"
VARIABLE = "MLFLOW_TRACKING_URI"
# MLflow's store of files: a folder's name, file:///folder; host:port without http:// is one to it
_FOLDER = re.compile(r"file:.*|[^:]*|[\w.-]+:\d+(/.*)?")
_NAMES = ("databricks", "databricks-uc", "uc")  # of profiles, without a colon


class AddressError(ValueError):
    """No run can be tracked at this address: one sentence that names who gave it."""


def tracking_uri(recipe: Recipe, run_dir: Path) -> str:
    """The recipe's store, else MLFLOW_TRACKING_URI's, else the one that the run was started with,
    else a SQLite file beside the runs.

    Raises AddressError where the recipe's password is hidden and nobody else has it.
    """
    given = recipe.tracking.uri or ""
    if given and HIDDEN not in given:
        return given
    if found := os.environ.get(VARIABLE) or _started_with(run_dir):
        return found
    if given:
        raise AddressError(
            f"tracking.uri={given}: its password is not kept there, and {run_dir / ADDRESS_FILE} "
            f"is gone: give the whole address by {VARIABLE}"
        )
    return f"sqlite:///{run_dir.absolute().parent / 'mlflow.db'}"


def keep(recipe: Recipe, run_dir: Path) -> None:
    """Remember the address for the run's later processes, unless it is the file beside the runs."""
    uri = tracking_uri(recipe, run_dir)
    if recipe.tracking.uri or os.environ.get(VARIABLE):
        write_whole(run_dir / ADDRESS_FILE, uri + "\n", mode=0o600)
    elif _started_with(run_dir):
        log.info(f"aent: {VARIABLE} is not set: MLflow is {redacted(uri)}, as before")


def fault(recipe: Recipe) -> str:
    """What is wrong with the address that the recipe or the environment gives; empty if nothing
    that can be seen from here."""
    for name, uri in (("tracking.uri", recipe.tracking.uri), (VARIABLE, os.environ.get(VARIABLE))):
        if uri:
            return f"{name}={what}" if (what := _unsupported(uri)) else ""
    return ""


def check_supported(uri: str) -> None:
    """Raise AddressError for a store of files."""
    if what := _unsupported(uri):
        raise AddressError(what)


def _unsupported(uri: str) -> str:
    if not _FOLDER.fullmatch(uri) or uri in _NAMES:
        return ""
    return (
        f"{redacted(uri)} is a folder to MLflow, where a point that is sent twice is there twice: "
        "name a server (http://HOST:PORT) or a file (sqlite:////FOLDER/mlflow.db)"
    )


def look_command(uri: str) -> str:
    """What a person types, or opens, to look at the store; without its password."""
    shown = redacted(uri)
    return shown if uri.startswith("http") else f"mlflow ui --backend-store-uri {shown}"


def _started_with(run_dir: Path) -> str:
    path = run_dir / ADDRESS_FILE
    return path.read_text().strip() if path.is_file() else ""
