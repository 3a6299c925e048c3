"""MLflow's client, imported late: it takes seconds."""

from __future__ import annotations

import logging
import os
from typing import Any


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
