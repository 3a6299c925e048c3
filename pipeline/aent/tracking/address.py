"""MLflow's address for a run, which may contain a password, and the form in which it is shown.

No log, no page of MLflow and no ``recipe.yaml`` shows a password. The start writes the whole
address to ``run_dir/mlflow_uri`` (mode 600) for the run's other processes. So a later process whose
environment lacks MLFLOW_TRACKING_URI does not use another store.
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
# MLflow's file store: a folder's name, or file:///folder; it reads host:port without http:// as one
_FOLDER = re.compile(r"file:.*|[^:]*|[\w.-]+:\d+(/.*)?")
_NAMES = ("databricks", "databricks-uc", "uc")  # names of profiles, which have no colon


class AddressError(ValueError):
    """No run can be tracked at this address; one sentence that names the field or variable."""


def tracking_uri(recipe: Recipe, run_dir: Path) -> str:
    """The store of the recipe, else of MLFLOW_TRACKING_URI, else the one that the run started with,
    else a SQLite file beside the runs.

    Raises AddressError if the recipe's password was removed and no other source has it.
    """
    given = recipe.tracking.uri or ""
    if given and HIDDEN not in given:
        return given
    if found := os.environ.get(VARIABLE) or _started_with(run_dir):
        return found
    if given:
        raise AddressError(
            f"tracking.uri={given}: its password is not stored there, and {run_dir / ADDRESS_FILE} "
            f"is gone: set {VARIABLE} to the whole address"
        )
    return f"sqlite:///{run_dir.absolute().parent / 'mlflow.db'}"


def keep(recipe: Recipe, run_dir: Path) -> None:
    """Store the address for the run's later processes, unless it is the file beside the runs."""
    uri = tracking_uri(recipe, run_dir)
    if recipe.tracking.uri or os.environ.get(VARIABLE):
        write_whole(run_dir / ADDRESS_FILE, uri + "\n", mode=0o600)
    elif _started_with(run_dir):
        log.info(f"aent: {VARIABLE} is not set: using MLflow at {redacted(uri)}, as before")


def fault(recipe: Recipe) -> str:
    """What is wrong with the address in the recipe or the environment; empty if nothing is known to
    be."""
    for name, uri in (("tracking.uri", recipe.tracking.uri), (VARIABLE, os.environ.get(VARIABLE))):
        if uri:
            return f"{name}={what}" if (what := _unsupported(uri)) else ""
    return ""


def check_supported(uri: str) -> None:
    """Raise AddressError for a file store."""
    if what := _unsupported(uri):
        raise AddressError(what)


def _unsupported(uri: str) -> str:
    if not _FOLDER.fullmatch(uri) or uri in _NAMES:
        return ""
    return (
        f"{redacted(uri)} is a folder for MLflow, which would store a point twice if it is sent "
        f"twice: "
        "use a server (http://HOST:PORT) or a file (sqlite:////FOLDER/mlflow.db)"
    )


def look_command(uri: str) -> str:
    """The command to run, or the address to open, to see the store; without its password."""
    shown = redacted(uri)
    return shown if uri.startswith("http") else f"mlflow ui --backend-store-uri {shown}"


def _started_with(run_dir: Path) -> str:
    path = run_dir / ADDRESS_FILE
    return path.read_text().strip() if path.is_file() else ""
