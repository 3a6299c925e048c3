"""The tracker against a real SQLite store, read back with MLflow's own client."""

import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aent.recipe.load import dump, flatten, load
from aent.recipe.schema import Recipe
from aent.tracking import journal, store
from aent.tracking.journal import Point
from aent.tracking.store import Store, tracking_uri
from aent.tracking.tracker import Tracker, mark_ended

RECIPE = """
name: trial
model: {bundled: tiny-qwen2}
controller: {kind: band, initial: .01, low: 1, high: 2, step_size: .1, min: 0, max: 1}
"""
ROW = {"prompt": "1 + 1?", "response": "2", "reward": 1.0, "entropy": math.nan, "version": 3}


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> bytes:
    """A new store's file: its migrations take seconds, so they run once."""
    folder = tmp_path_factory.mktemp("store")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def run_dir(tmp_path, empty_store) -> Path:
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    (tmp_path / "trial").mkdir()
    return tmp_path / "trial"


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load(tmp_path / "r.yaml", ["task.config.text=" + "x" * 7000])


def client_of(run_dir: Path) -> tuple[MlflowClient, str]:
    uri = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    return MlflowClient(uri), (run_dir / "mlflow_run_id").read_text().strip()


def history(run_dir: Path, key: str) -> list[tuple[int, float]]:
    client, run_id = client_of(run_dir)
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


def test_a_finished_run_is_wholly_in_mlflow(run_dir, recipe):
    tracker = Tracker(run_dir, recipe)
    for step in range(3):
        tracker.log(step, {"reward/mean": step / 4, "policy/clamped_entropy": 2.0 - step})
        tracker.log_samples(step, [ROW, ROW | {"reward": 0.0}])
        tracker.refresh_figure()
    tracker.log(2, {"update/grad_norm": math.nan})
    assert tracker.finish("FINISHED", timeout_s=120)
    assert tracker.failures == 0

    client, run_id = client_of(run_dir)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "trial"
    assert history(run_dir, "reward/mean") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert [s for s, v in history(run_dir, "update/grad_norm") if math.isnan(v)] == [2]
    assert run.data.params["trainer.optimizer.lr"] == "1e-06"
    assert run.data.params["model.path"] == "null"
    assert len(run.data.params["task.config.text"]) == 6000
    assert set(run.data.params) == set(flatten(recipe))
    assert re.fullmatch("[0-9a-f]{64}", run.data.tags["aent.recipe_sha256"])
    assert {f.path for f in client.list_artifacts(run_id)} == {
        "recipe.yaml", "figure.png", "samples",
    }  # fmt: skip
    assert run.info.artifact_uri.startswith((run_dir.parent / "mlflow-artifacts").as_uri())
    path = Path(client.download_artifacts(run_id, "recipe.yaml"))
    assert load(path) == recipe
    assert (run_dir / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_samples_are_a_table_for_every_step(run_dir, recipe, monkeypatch):
    monkeypatch.setattr(store, "TABLES_IN_TAG", 3)
    # load_table looks in the default store, not in its client's
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(recipe, run_dir))
    tracker = Tracker(run_dir, recipe)
    steps = 5
    for step in range(steps):
        tracker.log_samples(step, [ROW])
    assert tracker.finish("FINISHED", timeout_s=120)
    client, run_id = client_of(run_dir)
    experiment = client.get_run(run_id).info.experiment_id
    table = client.load_table(experiment, f"samples/step_{steps - 1:06d}.json", [run_id])
    assert list(table.columns) == list(ROW)
    assert table["response"].tolist() == [2]  # as pandas reads it
    assert table["version"].tolist() == [3]
    assert table["entropy"].isna().all()
    assert len(client.list_artifacts(run_id, "samples")) == steps  # though not all in the tag


def test_the_journal_sent_twice_is_the_same_as_once(run_dir, recipe):
    tracker = Tracker(run_dir, recipe)
    for step in range(3):
        tracker.log(step, {"a": float(step), "b": math.nan})
    assert tracker.finish("KILLED", timeout_s=120)
    points = journal.read(run_dir / "journal.jsonl")
    assert [(p.step, p.key) for p in points] == [(s, k) for s in range(3) for k in "ab"]
    client, run_id = client_of(run_dir)
    before = {key: client.get_metric_history(run_id, key) for key in "ab"}
    assert [(m.step, m.timestamp) for m in before["a"]] == [
        (p.step, p.time) for p in points if p.key == "a"
    ]
    again = Store(tracking_uri(recipe, run_dir), run_id)
    again.log_points(points)
    again.log_points(points[1:4])
    assert [len(client.get_metric_history(run_id, key)) for key in "ab"] == [3, 3]
    assert client.get_metric_history(run_id, "a") == before["a"]


def test_points_that_could_not_be_sent_go_with_the_next_attempt(run_dir, recipe, capfd):
    """A store that cannot be opened at first: training is told once, and nothing is lost."""
    database = run_dir.parent / "mlflow.db"
    content = database.read_bytes()
    database.write_bytes(b"not a database, but of some length" * 100)
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"a": 1.0})
    deadline = time.monotonic() + 60
    while tracker.failures < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.failures >= 1
    database.write_bytes(content)
    for step in (1, 2):
        tracker.log(step, {"a": 1.0})
    assert tracker.finish("FINISHED", timeout_s=120)
    assert history(run_dir, "a") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert capfd.readouterr().err.count("aent: tracking could not send to MLflow") == 1


def test_finish_does_not_wait_for_a_silent_server(run_dir, recipe, monkeypatch, capfd):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = Tracker(run_dir, recipe)
        tracker.log(0, {"a": 1.0})
        assert not tracker.finish("FINISHED", timeout_s=0.5)
        assert "did not take 1 points" in capfd.readouterr().err
        (run_dir / "recipe.yaml").write_text(dump(recipe))
        (run_dir / "mlflow_run_id").write_text("0" * 32)
        assert not mark_ended(run_dir, "FAILED", timeout_s=2.0)
        assert "was not set to FAILED: no answer within" in capfd.readouterr().err
    assert journal.read(run_dir / "journal.jsonl")[0].value == 1.0


def test_a_name_that_some_stores_refuse_is_kept_in_the_journal_only(run_dir, recipe, capfd):
    assert journal.colliding("a/b", ["a"]) == "a"
    assert journal.colliding("a", ["c", "a/b"]) == "a/b"
    assert journal.colliding("ab", ["a", "ab/c/d"]) == "ab/c/d"
    assert journal.colliding("ab", ["a", "abc/d"]) is None
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"a": 1.0})
    tracker.log(1, {"a/b": 1.0, "c": 2.0})
    assert tracker.finish("FINISHED", timeout_s=120)
    client, run_id = client_of(run_dir)
    assert client.get_run(run_id).data.metrics == {"a": 1.0, "c": 2.0}
    assert len(journal.read(run_dir / "journal.jsonl")) == 3
    assert "send a/b: a metric is called a already" in capfd.readouterr().err


KILLED_RUN = """
import os, sys, time
from pathlib import Path
from aent.recipe.load import load
from aent.tracking.tracker import Tracker
run_dir = Path(sys.argv[1])
tracker = Tracker(run_dir, load(run_dir / "recipe.yaml"))
deadline = time.monotonic() + 120
while not (run_dir / "mlflow_run_id").is_file() and time.monotonic() < deadline:
    time.sleep(0.05)
tracker.log(0, {"a": 1.0})
os._exit(1)
"""


@pytest.mark.slow
def test_mark_ended_speaks_for_a_process_that_died(run_dir, recipe):
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    done = subprocess.run([sys.executable, "-c", KILLED_RUN, str(run_dir)], timeout=180)
    assert done.returncode == 1
    client, run_id = client_of(run_dir)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert mark_ended(run_dir, "KILLED", timeout_s=120)
    assert client.get_run(run_id).info.status == "KILLED"
    assert history(run_dir, "a") == [(0, 1.0)]
    assert mark_ended(run_dir, "FAILED", timeout_s=120)  # a final status stays
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_mark_ended_makes_the_run_that_died_before_mlflow_heard_of_it(run_dir, recipe):
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    assert mark_ended(run_dir, "FAILED", timeout_s=120)
    client, run_id = client_of(run_dir)
    assert client.get_run(run_id).info.status == "FAILED"


def test_where_the_store_is(recipe, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "trial"
    assert tracking_uri(recipe, run) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri(recipe, run) == "http://tracker:5000"
    named = load(tmp_path / "r.yaml", ["tracking.uri=sqlite:////elsewhere/m.db"])
    assert tracking_uri(named, run) == "sqlite:////elsewhere/m.db"


def test_a_journal_cut_short_reads_up_to_the_cut(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal.append(path, [Point(0, 5, "a", 0.1), Point(0, 5, "b", math.inf)])
    journal.append(path, [Point(1, 6, "a", 1 / 3)])
    text = path.read_text()
    assert journal.read(path)[2] == Point(1, 6, "a", 1 / 3)
    path.write_text(text[:-4])
    assert journal.read(path) == [Point(0, 5, "a", 0.1), Point(0, 5, "b", math.inf)]
