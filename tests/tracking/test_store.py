"""A server's refusal is reported in the server's words."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from aent.tracking.store import experiment_id
from wording import naming


@contextmanager
def refusing(found: tuple[int, dict], made: tuple[int, dict]) -> Iterator[str]:
    """A server's address; GET and POST are answered with these codes and bodies."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: dict) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self.answer(*found)

        def do_POST(self) -> None:
            self.answer(*made)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


NOT_THERE = (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"})
DELETED = {"experiment": {"experiment_id": "1", "name": "aent", "lifecycle_stage": "deleted"}}


@pytest.mark.parametrize(
    ("found", "made", "names"),
    [
        (NOT_THERE, (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "an absolute path"}),
         ("tracking.experiment", "aent", "an absolute path")),
        (NOT_THERE, (403, {"error_code": "PERMISSION_DENIED", "message": "not for you"}),
         ("tracking.experiment", "aent", "not for you")),
        (NOT_THERE, (400, {"error_code": "RESOURCE_LIMIT_EXCEEDED", "message": "quota of 5"}),
         ("tracking.experiment", "aent", "quota of 5")),
        ((200, DELETED), (200, {}), ("tracking.experiment", "aent", "deleted")),
    ],
)  # fmt: skip
def test_an_experiment_that_is_not_made_is_told_with_the_servers_reason(
    found, made, names, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with refusing(found, made) as uri, pytest.raises(RuntimeError, match=naming(*names)):
        experiment_id(MlflowClient(uri), uri, "aent")


def test_a_refusal_to_look_is_the_servers_too(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    denied = (403, {"error_code": "PERMISSION_DENIED", "message": "not for you"})
    with refusing(denied, denied) as uri, pytest.raises(MlflowException, match="not for you"):
        experiment_id(MlflowClient(uri), uri, "aent")
