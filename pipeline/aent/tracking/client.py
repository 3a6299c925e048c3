"""MLflow's client, imported late: it takes seconds; and what a server may say to it."""

from __future__ import annotations

import logging
import os
from typing import Any


class NotTaken(Exception):
    """The server has no place for such a thing: told once, and no failure of a run. Its text says
    why of the server: "it is MLflow 2.9"."""


def is_unknown_route(error: Exception) -> bool:
    """Whether MLflow's error says that the server, or a proxy before it, has no such route."""
    return getattr(error, "error_code", "") in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


def mlflow_client(uri: str) -> Any:
    """MLflow's client, without its chatter."""
    # before the import: MLflow's usage reports are started by it
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # a request to a dead or frozen server ends soon; who sends tries again by itself (tracker.py)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # a new database's migrations, one line each
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)
