"""A real MLflow server, killed, frozen or away: nothing lost, nothing doubled, no step waits.

The request time-out is set to ten minutes: a call that waited for the server would show.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aent.cli.main import app
from aent.recipe.load import dump, load
from aent.recipe.schema import Recipe
from aent.tracking import journal, uploads
from aent.tracking.sender import everything_sent
from aent.tracking.tracker import Tracker
from tracking.examples import recipe_in
from tracking.proxy import NAME, PASSWORD
from waiting import PATIENCE_S, wait_until
from wording import assert_names

pytestmark = pytest.mark.slow


@pytest.fixture
def run_dir(tmp_path, server, monkeypatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    folder = tmp_path / "trial"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(recipe_in(tmp_path)))
    return folder


def recipe_of(run_dir: Path) -> Recipe:
    return load(run_dir / "recipe.yaml")


def log(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log(step, {"loss": 1 / (step + 1), "reward": float(step)})
        tracker.log_samples(step, [{"response": f"of step {step}", "reward": 0.5}])
        tracker.refresh_figure()


def assert_whole(run_dir: Path, steps: int, status: str = "FINISHED") -> None:
    """The server's only run of this experiment has every entry of the journal once, as it was."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(recipe_of(run_dir).tracking.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (run_dir / "mlflow_run_id").read_text().strip()
    assert run.info.status == status
    logged = list(journal.read(run_dir / "journal.jsonl"))
    for key in ("loss", "reward"):
        history = client.get_metric_history(run.info.run_id, key)
        assert [(m.step, m.timestamp, m.value) for m in history] == [
            (p.step, p.time, p.value) for p in logged if p.key == key
        ]
        assert [m.step for m in history] == list(range(steps))
    tables = {f.path for f in client.list_artifacts(run.info.run_id, "samples")}
    assert tables == {f"samples/step_{step:06d}.json" for step in range(steps)}
    names = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert names == {"recipe.yaml", "figure.png", "samples"}


def test_a_server_that_is_away_at_the_start_gets_the_run_when_it_answers(run_dir, server, capfd):
    server.kill()
    tracker = Tracker(run_dir, recipe_of(run_dir))
    log(tracker, range(2))
    wait_until(lambda: tracker.failures > 0, "an attempt has failed")
    assert not (run_dir / "mlflow_run_id").exists()
    server.start()
    log(tracker, range(2, 4))
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S)
    assert_whole(run_dir, steps=4)
    said = capfd.readouterr().err
    first, again = (line for line in said.splitlines() if line.startswith("aent: "))
    assert_names(first, "MLflow", run_dir / "journal.jsonl")
    assert_names(again, "MLflow")


def test_a_server_that_is_frozen_in_mid_run_is_not_waited_for(run_dir, server):
    if not server.answers():
        server.start()
    tracker = Tracker(run_dir, recipe_of(run_dir))
    log(tracker, range(2))
    wait_until(lambda: everything_sent(run_dir), "the first steps arrive")
    server.signal(signal.SIGSTOP)
    try:
        log(tracker, range(2, 6))  # returns although no server answers
        assert not everything_sent(run_dir)
    finally:
        server.signal(signal.SIGCONT)
    log(tracker, range(6, 8))
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S)
    assert_whole(run_dir, steps=8)


def test_a_server_that_is_killed_in_mid_run_gets_the_rest_when_it_is_back(run_dir, server):
    if not server.answers():
        server.start()
    tracker = Tracker(run_dir, recipe_of(run_dir))
    log(tracker, range(3))
    wait_until(lambda: (run_dir / "mlflow_run_id").exists(), "the run exists")
    server.kill()  # perhaps in the middle of a batch
    log(tracker, range(3, 6))
    server.start()
    log(tracker, range(6, 7))
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S)
    assert_whole(run_dir, steps=7)


# a run that ends while the server is frozen: between its two parts it waits for a line
ENDS_ALONE = """
import sys
from pathlib import Path
from aent.recipe.load import load
from aent.tracking.tracker import Tracker
from tracking.proxy import NAME, PASSWORD, Proxy, proxy
from tracking.test_outages import log
run_dir = Path(sys.argv[1])
tracker = Tracker(run_dir, load(run_dir / "recipe.yaml"))
log(tracker, range(2))
print("logged", flush=True)
sys.stdin.readline()
log(tracker, range(2, 5))
sys.exit(0 if tracker.finish("FINISHED", timeout_s=1) else 7)
"""


def test_what_a_frozen_server_missed_at_the_end_is_sent_by_mlflow_sync(run_dir, server):
    from typer.testing import CliRunner

    if not server.answers():
        server.start()
    tests = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        [sys.executable, "-c", ENDS_ALONE, str(run_dir)],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "logged\n"
            wait_until(lambda: everything_sent(run_dir), "the first steps arrive")
            server.signal(signal.SIGSTOP)
            try:
                _, said = run.communicate("\n", timeout=PATIENCE_S)
            finally:
                server.signal(signal.SIGCONT)
        finally:
            run.kill()
    assert run.returncode == 7, said
    assert f"aent mlflow-sync {run_dir}" in said
    for _ in range(2):  # twice is as once
        done = CliRunner().invoke(app, ["mlflow-sync", str(run_dir)])
        assert done.exit_code == 0, done.output
        assert "FINISHED" in done.stdout
    assert_whole(run_dir, steps=5)


def test_a_server_behind_tls_and_a_password_gets_all(run_dir, before, capfd):
    tracker = Tracker(run_dir, recipe_of(run_dir))
    log(tracker, range(2))
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S), capfd.readouterr().err
    assert_whole(run_dir, steps=2)
    assert any("mlflow-artifacts" in path for path in before.asked)


def test_a_password_in_the_address_works_and_is_shown_nowhere(run_dir, before, monkeypatch, capfd):
    uri = before.uri.replace("https://", f"https://{NAME}:{PASSWORD}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    tracker = Tracker(run_dir, recipe_of(run_dir))
    log(tracker, range(1))
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S), capfd.readouterr().err
    assert PASSWORD not in tracker.look
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace(PASSWORD, f"{PASSWORD}-wrong"))
    tracker = Tracker(run_dir, recipe_of(run_dir))
    wait_until(lambda: tracker.failures > 0, "the proxy refuses")
    said = capfd.readouterr().err
    assert "401" in said
    assert PASSWORD not in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracker.finish("FINISHED", timeout_s=PATIENCE_S)


def test_uploads_that_hang_keep_neither_points_nor_status(
    run_dir, before, server, monkeypatch, capfd
):
    before.free.clear()
    monkeypatch.setattr(uploads, "UPLOAD_S", 2.0)
    tracker = Tracker(run_dir, recipe_of(run_dir))
    log(tracker, range(3))
    wait_until(lambda: tracker.failures > 0, "an upload has reached its deadline")
    assert "TimeoutError" in capfd.readouterr().err
    assert not tracker.finish("FINISHED", timeout_s=15)
    said = capfd.readouterr().err
    assert_names(said, "3 files", f"aent mlflow-sync {run_dir}")
    client = MlflowClient(server.uri)
    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(run_id, "loss")) == 3
    before.free.set()
    assert tracker._uploads.join(PATIENCE_S)
    assert_whole(run_dir, steps=3)


def test_sync_says_what_is_wrong(tmp_path, server, run_dir):
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["mlflow-sync", str(tmp_path)])
    assert done.exit_code == 2
    assert_names(done.stderr, tmp_path / "recipe.yaml")
    done = CliRunner().invoke(app, ["mlflow-sync", str(run_dir)])
    assert done.exit_code == 2
    assert_names(done.stderr, "journal.jsonl")
    server.kill()
    journal.append(run_dir / "journal.jsonl", [journal.Status(1, "FAILED")])
    done = CliRunner().invoke(app, ["mlflow-sync", str(run_dir)])
    assert done.exit_code == 1
    assert_names(done.stderr, "MLflow")
