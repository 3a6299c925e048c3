"""Fixtures of several files: MLflow's server, a proxy before it, an empty SQLite store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from tracking.proxy import NAME, PASSWORD, Proxy, proxy
from tracking.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """One for all; a test that finds it dead starts it again."""
    found = Server(tmp_path_factory.mktemp("server"))
    yield found
    found.kill()


@pytest.fixture
def before(server, tmp_path, monkeypatch) -> Iterator[Proxy]:
    """A proxy before the server, whose certificate and password are in the environment."""
    if not server.answers():
        server.start()
    with proxy(server.uri, tmp_path) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(found.certificate))
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", NAME)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        yield found


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> bytes:
    """A new store's file: its migrations take seconds, so they run once."""
    folder = tmp_path_factory.mktemp("store")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return (folder / "mlflow.db").read_bytes()
