"""What a real MLflow server, or a proxy before it, refuses for ever costs itself only."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, RESOURCE_DOES_NOT_EXIST
from mlflow.utils.request_utils import augmented_raise_for_status

from aent.recipe.load import dump
from aent.recipe.schema import Recipe
from aent.tracking import journal
from aent.tracking.ended import mark_ended
from aent.tracking.journal import File, Point, Status
from aent.tracking.policies import SavedPolicy
from aent.tracking.refused import deliver, refusal
from aent.tracking.sender import Sender, everything_sent, sync
from aent.tracking.tracker import Tracker
from tracking.examples import recipe_in, record, traced_step
from tracking.test_store import refusing
from waiting import PATIENCE_S, wait_until
from wording import assert_names


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return recipe_in(tmp_path)


@pytest.fixture
def run_dir(tmp_path, recipe, server, monkeypatch) -> Path:
    if not server.answers():
        server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = tmp_path / "trial"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(recipe))
    return folder


def run_id_of(run_dir: Path) -> str:
    return (run_dir / "mlflow_run_id").read_text().strip()


def steps_of(server, run_dir: Path, key: str) -> list[int]:
    history = MlflowClient(server.uri).get_metric_history(run_id_of(run_dir), key)
    return [metric.step for metric in history]


def lines_about(said: str, what: str) -> list[str]:
    return [line for line in said.splitlines() if what in line]


@pytest.mark.slow
def test_a_name_or_a_file_that_the_server_refuses_holds_up_nothing(run_dir, recipe, server, capfd):
    tracker = Tracker(run_dir, recipe)
    (run_dir / "profiles").mkdir()
    names = ("a.gz", "b%23.gz", "c.gz")  # MLflow's server refuses a path with #
    for name in names:
        (run_dir / "profiles" / name).write_text("x")
    for step in range(3):
        tracker.log(step, {"loss": 1.0, "share of $": 0.5, "reward": float(step)})
        tracker.tag("wrong?", "x" * 10)
    tracker.log_files("profiles", lambda: [run_dir / "profiles" / name for name in names])
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S)
    said = capfd.readouterr().err
    assert tracker.failures == 0, said
    assert everything_sent(run_dir)

    client, run_id = MlflowClient(server.uri), run_id_of(run_dir)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [steps_of(server, run_dir, key) for key in ("loss", "reward")] == [[0, 1, 2]] * 2
    there = {file.path for file in client.list_artifacts(run_id, "profiles")}
    assert there == {"profiles/a.gz", "profiles/c.gz"}
    (metric,) = lines_about(said, "share of $")
    assert_names(metric, "INVALID_PARAMETER_VALUE", "step 0", run_dir)
    (file,) = lines_about(said, "profiles/b%23.gz")
    assert_names(file, "400", "Invalid path")
    assert len(lines_about(said, "the tag wrong?")) == 3
    (end,) = lines_about(said, "refused")
    assert "refused 7 entries" in end  # three points, three tags, a file
    assert sum(p.key == "share of $" for p in journal.read(run_dir / "journal.jsonl")) == 3

    assert "but 7 entries that it refuses" in sync(run_dir)
    assert steps_of(server, run_dir, "loss") == [0, 1, 2]


@pytest.mark.slow
def test_what_is_too_large_for_a_proxy_is_split_or_left_out(
    run_dir, recipe, server, before, monkeypatch, capfd
):
    before.largest = 20_000
    path = run_dir / "journal.jsonl"
    journal.append(path, [Status(1, "RUNNING")])
    journal.append(path, [Point(step, 1, "loss", 0.5) for step in range(1000)])
    (run_dir / "samples").mkdir()
    for step, size in enumerate((10, 30_000, 10)):
        name = f"samples/step_{step:06d}.json"
        (run_dir / name).write_text("x" * size)
        journal.append(path, [File(1, name, "samples")])
    step = traced_step(0)
    one, other = step.responses
    large = replace(step, responses=(one, replace(other, response="x" * 30_000)))
    record(run_dir, "traces", "traces/step_000000.json", large.to_json())
    journal.append(path, [Status(2, "FINISHED")])
    told = sync(run_dir, from_start=False)
    assert "but 2 entries" in told
    assert everything_sent(run_dir)
    said = capfd.readouterr().err
    assert_names(lines_about(said, "samples/step_000001.json")[0], "413", run_dir)
    assert_names(lines_about(said, f"sample {other.sample} in traces")[0], "413")
    assert len(said.splitlines()) == 2
    assert steps_of(server, run_dir, "loss") == list(range(1000))
    client = MlflowClient(server.uri)
    run = client.get_run(run_id_of(run_dir))
    assert run.info.status == "FINISHED"
    tables = [file.path for file in client.list_artifacts(run.info.run_id, "samples")]
    assert tables == ["samples/step_000000.json", "samples/step_000002.json"]
    (trace,) = client.search_traces(locations=[run.info.experiment_id])
    assert trace.info.trace_metadata["aent.sample"] == str(one.sample)


@pytest.mark.slow
def test_a_run_that_was_deleted_loses_nothing_until_it_is_restored(run_dir, recipe, server, capfd):
    """MLflow answers 400 INVALID_PARAMETER_VALUE for each entry of a deleted run."""
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"loss": 1.0})
    tracker.log_samples(0, [{"response": "a"}])
    wait_until(lambda: everything_sent(run_dir), "the first step arrives")
    client = MlflowClient(server.uri)
    client.delete_run(run_id_of(run_dir))
    tracker.log(1, {"loss": 1.0})
    tracker.tag("aent.alert.reward", "since step 1")
    wait_until(lambda: tracker.failures > 1, "two attempts have failed")
    client.restore_run(run_id_of(run_dir))
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S)
    said = capfd.readouterr().err
    assert "active" in said
    assert not lines_about(said, "refuse")
    assert steps_of(server, run_dir, "loss") == [0, 1]
    assert client.get_run(run_id_of(run_dir)).data.tags["aent.alert.reward"] == "since step 1"


@pytest.mark.slow
def test_the_end_of_a_dead_process_says_what_was_refused(run_dir, capfd):
    path = run_dir / "journal.jsonl"
    journal.append(path, [Status(1, "RUNNING"), Point(0, 1, "wrong?", 1.0)])
    assert mark_ended(run_dir, "FAILED", timeout_s=300)
    (line,) = capfd.readouterr().err.splitlines()
    assert_names(line, "wrong?", "INVALID_PARAMETER_VALUE", run_dir)


class Strict:
    """A store that refuses names, values or parameters of its own."""

    def __init__(self, refuses) -> None:
        self.run_id, self.refuses = "0" * 32, refuses
        self.taken: list[Point] = []
        self.calls = 0

    def log_points(self, points) -> None:
        self.calls += 1
        if any(map(self.refuses, points)):
            raise MlflowException.invalid_parameter_value("not this one")
        self.taken += points

    def set_status(self, status, time_ms) -> None: ...

    def prove_writable(self) -> None: ...


def sent_to(store: Strict, run_dir: Path, recipe: Recipe) -> Sender:
    """A store that is no real one: MLflow's own refuses neither NaN nor by a count."""
    sender = Sender(run_dir, recipe)
    sender._store = store  # type: ignore[assignment]
    sender.send()
    return sender


@pytest.fixture
def offline(tmp_path, recipe) -> Path:
    folder = tmp_path / "offline"
    folder.mkdir()
    return folder


def test_of_a_metric_with_a_refused_name_no_later_point_is_sent(offline, recipe, capfd):
    points = [Point(s, 1, key, 1.0) for s in range(5000) for key in ("a", "wrong", "b")]
    journal.append(offline / "journal.jsonl", points)
    store = Strict(lambda point: point.key == "wrong")
    sender = sent_to(store, offline, recipe)
    assert sorted(store.taken) == sorted(p for p in points if p.key != "wrong")
    assert sender.refused == 5000
    assert sender.left() == 0
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert store.calls < 15 + 2 * 1000  # of 15 batches the first is parted


def test_a_refused_nan_is_left_out_and_the_metrics_numbers_are_sent(offline, recipe, capfd):
    values = [1.0, math.nan, 2.0, math.nan, 3.0]
    points = [Point(s, 1, "a", value) for s, value in enumerate(values)]
    journal.append(offline / "journal.jsonl", points)
    store = Strict(lambda point: math.isnan(point.value))
    sender = sent_to(store, offline, recipe)
    assert [point.value for point in store.taken] == [1.0, 2.0, 3.0]
    assert sender.refused == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert_names(line, "a if it is nan", "step 1", "not this one")


def test_an_error_that_is_no_refusal_skips_nothing(offline, recipe):
    points = [Point(0, 1, "a", 1.0), Point(0, 1, "wrong", 1.0)]
    journal.append(offline / "journal.jsonl", points)
    store = Strict(lambda point: point.key == "wrong")

    def gone() -> None:
        raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)

    store.prove_writable = gone  # type: ignore[method-assign]
    sender = Sender(offline, recipe)
    sender._store = store  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(MlflowException, match="no such run"):
            sender.send()
    assert sender.left() == 2
    assert sender.refused == 0


def test_a_server_that_fails_while_a_batch_is_split_skips_nothing():
    calls: list[int] = []

    def send(items) -> None:  # one item is refused, and soon each of them
        calls.append(len(items))
        if 3 in items or len(calls) > 4:
            raise MlflowException("the database", error_code=BAD_REQUEST)

    def probe() -> None:
        if len(calls) > 4:
            raise MlflowException("the database", error_code=BAD_REQUEST)

    with pytest.raises(MlflowException, match="the database"):
        deliver(range(16), send, probe)
    assert len(calls) > 4


@pytest.mark.parametrize("number", range(1, 18))
def test_refused_ones_are_found_wherever_they_are(number):
    """Against counting by hand: every subset of up to two refused ones among ``number``."""
    for first in range(number):
        for second in range(first, number):
            taken: list[int] = []

            def send(items, refused=(first, second), taken=taken) -> None:
                if set(items) & set(refused):
                    raise MlflowException.invalid_parameter_value("no")
                taken.extend(items)

            found = deliver(range(number), send, lambda: None)
            assert sorted({item for item, _ in found}) == sorted({first, second})
            assert sorted(taken) == sorted(set(range(number)) - {first, second})


@pytest.mark.parametrize(
    ("code", "error_code", "is_one"),
    [
        (400, "INVALID_PARAMETER_VALUE", True),
        (400, "BAD_REQUEST", True),
        (401, "UNAUTHENTICATED", False),
        (403, "PERMISSION_DENIED", False),
        (404, "RESOURCE_DOES_NOT_EXIST", False),
        (404, "ENDPOINT_NOT_FOUND", False),
        (409, "RESOURCE_CONFLICT", False),
        (429, "REQUEST_LIMIT_EXCEEDED", False),
        (429, "RESOURCE_EXHAUSTED", False),
        (500, "INTERNAL_ERROR", False),
        (503, "TEMPORARILY_UNAVAILABLE", False),
        *((code, "", code in (400, 413, 414, 415, 422))
          for code in (400, 401, 403, 404, 405, 407, 408, 409, 413, 414, 415, 422, 425, 429, 500,
                       502, 503, 504)),
    ],
)  # fmt: skip
def test_which_answers_are_about_what_was_sent(code, error_code, is_one, monkeypatch):
    """As MLflow's client reports a server's JSON and a proxy's page, for a call and an upload."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    body = {"error_code": error_code, "message": "words of the server"} if error_code else "<html>"
    with refusing((code, body), (code, body)) as uri:
        with pytest.raises(MlflowException) as called:
            MlflowClient(uri).set_tag("0" * 32, "a", "b")
        with pytest.raises(requests.HTTPError) as uploaded:
            augmented_raise_for_status(requests.get(uri, timeout=60))
    for error in (called.value, uploaded.value):
        assert bool(refusal(error)) == is_one, error
        if is_one:
            assert ("words of the server" if error_code else "<html>") in refusal(error)


def test_other_errors_are_no_refusal():
    for error in (OSError("disk"), TimeoutError("late"), ValueError("x"), requests.HTTPError("x")):
        assert refusal(error) == ""
    assert refusal(requests.ConnectionError("refused")) == ""


def test_a_refused_data_set_or_policy_holds_up_no_other(
    offline, recipe, empty_store, monkeypatch, capfd
):
    """In MLflow's own SQL store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (offline.parent / "mlflow.db").write_bytes(empty_store)
    (offline / "recipe.yaml").write_text(dump(recipe))
    sets = [
        {"context": "training", "name": name, "digest": "0" * 32, "source_type": "local",
         "source": "{}", "schema": "{}", "profile": "{}"}
        for name in ("first", "x" * 600, "third")
    ]  # fmt: skip
    record(offline, "datasets", "datasets/a.json", json.dumps(sets))
    (offline / "policy").mkdir()
    (offline / "policy" / "config.json").write_text("{}")
    for steps, name in enumerate(("not/a:name", "qwen2.5")):
        policy = SavedPolicy.of(offline / "policy", name, steps, None)
        record(offline, "policy", f"policies/step_{steps:06d}.json", policy.to_json())
    assert "but 2 entries" in sync(offline)
    assert everything_sent(offline)
    said = capfd.readouterr().err.splitlines()
    assert_names(said[0], "the data set", "datasets/a.json", "500")
    assert_names(said[1], "policy after 0 steps", "policies/step_000000.json")
    assert len(said) == 2
    client = MlflowClient(f"sqlite:///{offline.parent / 'mlflow.db'}")
    run = client.get_run(run_id_of(offline))
    assert {i.dataset.name for i in run.inputs.dataset_inputs} == {"first", "third"}
    (model,) = run.outputs.model_outputs
    assert client.get_logged_model(model.model_id).name == "qwen2_5-1"
