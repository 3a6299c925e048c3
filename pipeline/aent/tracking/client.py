"""MLflow's client, imported late because that takes seconds, and a server's refusals."""

from __future__ import annotations

import logging
import os
from typing import Any


class NotTaken(Exception):
    """The server does not support such an entity. Reported once; the run does not fail. The text
    says why, with the server as subject: "it is MLflow 2.9"."""


def is_unknown_route(error: Exception) -> bool:
    """Whether MLflow's error says that the server, or a proxy before it, has no such route."""
    return getattr(error, "error_code", "") in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


def mlflow_client(uri: str) -> Any:
    """MLflow's client, with its own log lines off."""
    # before the import, which starts MLflow's usage reports
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # a request to a dead or frozen server ends soon; the senders retry themselves (tracker.py)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # a new database logs one line for each migration
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)
