"""Traces in a real SQLite store, and what servers that take none say; the MLflow that is installed.

What a server of today does with them: test_entities_sent.py.
"""

from __future__ import annotations

import http.server
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from mlflow import MlflowClient
from mlflow.entities import SpanStatusCode, TraceState
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracing.constant import TRACE_REQUEST_ID_PREFIX

from aent.tracking import mlflow_traces
from aent.tracking.client import NotTaken
from aent.tracking.mlflow_traces import SINCE, trace_id
from aent.tracking.store import Store
from tracking.examples import PROMPT, RESPONSE, TIME, traced_step
from wording import naming


@pytest.fixture
def store(tmp_path, empty_store) -> Store:
    """A run in a SQLite store."""
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    found = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = found.client.create_experiment("aent", (tmp_path / "artifacts").as_uri())
    found.run_id = found.client.create_run(experiment).info.run_id
    return found


def traces_of(store: Store) -> dict[str, object]:
    """Those that MLflow shows for the run, by id."""
    client = MlflowClient(store.uri)
    experiment = client.get_run(store.run_id).info.experiment_id
    chosen = f"metadata.`mlflow.sourceRun` = '{store.run_id}'"
    found = client.search_traces(locations=[experiment], filter_string=chosen)
    return {trace.info.trace_id: trace for trace in found}


def test_a_trace_has_the_response_its_grading_and_its_rewards(store) -> None:
    mlflow_traces.send(store, traced_step(3))
    found = traces_of(store)
    whole, failed = (found[trace_id(store.run_id, 3, sample)] for sample in (0, 3))
    assert len(found) == 2
    assert (whole.info.state, failed.info.state) == (TraceState.OK, TraceState.ERROR)
    assert (whole.info.request_time, whole.info.execution_duration) == (TIME + 3 - 1750, 1750)
    assert whole.info.trace_metadata["aent.step"] == "3"
    assert failed.info.trace_metadata["aent.sample"] == "3"
    assert whole.info.request_preview == PROMPT
    assert whole.info.response_preview == RESPONSE
    assert whole.info.token_usage == {"input_tokens": 12, "output_tokens": 5, "total_tokens": 17}

    root, right, form, _ = whole.data.spans
    assert root.parent_id is None
    attributes = {name: root.attributes[name] for name in ("weight_version", "entropy", "length")}
    assert attributes == {"weight_version": 3, "entropy": 0.35, "length": 5}
    assert root.attributes["first_weight_version"] == 2
    assert [span.name for span in whole.data.spans[1:]] == [
        "grader/right", "grader/form", "grader/opinion",
    ]  # fmt: skip
    assert {span.parent_id for span in whole.data.spans[1:]} == {root.span_id}
    assert form.outputs == {"reward": 0.75, "short": 0.5}
    assert (form.attributes["kind"], form.attributes["weight"]) == ("python", 0.5)
    assert form.end_time_ns - form.start_time_ns == 1.5e9
    assert form.end_time_ns == root.end_time_ns == (TIME + 3) * 1_000_000
    assert right.end_time_ns == form.start_time_ns
    error = failed.data.spans[1].status
    assert (error.status_code, error.description) == (SpanStatusCode.ERROR, "timeout")

    said = {a.name: (a.value, a.span_id) for a in whole.info.assessments}
    assert said == {
        "reward": (1.375, root.span_id),
        "right": (1.0, right.span_id),
        "form": (0.75, form.span_id),
        "form.short": (0.5, form.span_id),
    }
    (judged,) = (a for a in failed.info.assessments if a.name == "right")
    assert judged.error.error_message == "timeout"


def test_a_nul_in_a_response_is_shown_by_its_symbol(store) -> None:
    """PostgreSQL would refuse the text, and the sender would repeat it for ever."""
    step = traced_step(3)
    responses = [replace(one, prompt="a\0", response="b\0\\u0000") for one in step.responses]
    mlflow_traces.send(store, replace(step, responses=tuple(responses)))
    for trace in traces_of(store).values():
        assert trace.info.request_preview == "a\u2400"
        assert trace.info.response_preview == "b\u2400\\u0000"
        assert trace.data.spans[1].inputs == {"response": "b\u2400\\u0000"}


def test_sent_twice_is_the_same_as_once(store) -> None:
    def everything() -> dict[str, object]:
        return {
            id_: (trace.info.to_dict(), [span.to_dict() for span in trace.data.spans])
            for id_, trace in traces_of(store).items()
        }

    mlflow_traces.send(store, traced_step(0))
    once = everything()
    mlflow_traces.send(store, traced_step(0))
    assert everything() == once
    mlflow_traces.send(store, traced_step(1))
    assert len(everything()) == 4


def test_a_trace_with_assessments_of_a_person_keeps_them(store) -> None:
    mlflow_traces.send(store, traced_step(0))
    id_ = trace_id(store.run_id, 0, 0)
    import mlflow

    mlflow.set_tracking_uri(store.uri)
    try:
        mlflow.log_feedback(trace_id=id_, name="mine", value="too short")
    finally:
        mlflow.set_tracking_uri(None)
    mlflow_traces.send(store, traced_step(0))
    said = [a.name for a in traces_of(store)[id_].info.assessments]
    assert sorted(said) == ["form", "form.short", "mine", "reward", "right"]


def test_the_mlflow_that_is_installed_is_the_one_that_this_was_written_for() -> None:
    """The parts of MLflow that the thin module relies on and that no public function offers."""
    source = inspect.getsource(RestStore.log_spans)
    assert f'Version("{SINCE}")' in source  # below, NotImplementedError
    assert "NotImplementedError" in source
    assert hasattr(RestStore._get_server_version, "cache_clear")  # None would stay otherwise
    assert trace_id("r", 0, 0) == TRACE_REQUEST_ID_PREFIX + trace_id("r", 0, 0)[-32:]


# -- old servers, and servers that do not answer in time


@dataclass
class Answers:
    """Codes and bodies by path, one after the other, the last one again and again; others: 404."""

    by_path: dict[str, list[tuple[int, str]]]
    asked: list[str] = field(default_factory=list)
    uri: str = ""

    def next(self, path: str) -> tuple[int, str]:
        self.asked.append(path)
        answers = self.by_path.get(path, [(404, "<html>no such page</html>")])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def answering(by_path: dict[str, list[tuple[int, str]]]) -> Iterator[Answers]:
    found = Answers(by_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, body = found.next(self.path.partition("?")[0])
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found.uri = f"http://127.0.0.1:{server.server_port}"
        yield found
        server.shutdown()


RUN = '{"run": {"info": {"run_id": "r", "experiment_id": "1"}, "data": {}}}'
RUN_PATH = "/api/2.0/mlflow/runs/get"


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ((200, "2.9.2"), ("2.9.2", "3.4")),
        ((200, "3.3.9"), ("3.3.9", "3.4")),
        ((404, "<html>"), ("version", "404")),
        ((200, "3.17.2"), ("/v1/traces",)),  # and a proxy that only passes /api
    ],
)
def test_a_server_without_traces_is_told_from_one_that_is_away(version, names, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        answering({RUN_PATH: [(200, RUN)], "/version": [version]}) as server,
        pytest.raises(NotTaken, match=naming(*names)),
    ):
        mlflow_traces.send(Store(server.uri, "r"), traced_step(0))


def test_a_server_that_is_slow_to_tell_its_version_is_asked_again(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    versions = [(503, "busy"), (503, "busy"), (200, "3.17.2")]
    with answering({RUN_PATH: [(200, RUN)], "/version": versions}) as server:
        store = Store(server.uri, "r")
        with pytest.raises(RuntimeError, match="503"):
            mlflow_traces.send(store, traced_step(0))
        with pytest.raises(NotTaken, match="/v1/traces"):  # so it was asked
            mlflow_traces.send(store, traced_step(0))
        assert server.asked.count("/v1/traces") == 1
