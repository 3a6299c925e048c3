"""The tracker against a real SQLite store, read back with MLflow's own client."""

import errno
import io
import json
import math
import os
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aent.recipe.load import dump, flatten, load
from aent.recipe.schema import Recipe
from aent.runtime import node_metrics
from aent.tracking import journal, store
from aent.tracking import tracker as tracker_module
from aent.tracking.address import tracking_uri
from aent.tracking.ended import mark_ended
from aent.tracking.journal import File, Point, Status
from aent.tracking.sender import Sender, everything_sent
from aent.tracking.store import Store
from aent.tracking.tracker import Tracker
from wording import assert_names

RECIPE = """
name: trial
model: {bundled: tiny-qwen2}
controller: {kind: band, initial: .01, low: 1, high: 2, step_size: .1, min: 0, max: 1}
tracking: {system_metrics_every_s: 0}
"""
ROW = {"prompt": "1 + 1?", "response": "2", "reward": 1.0, "entropy": math.nan, "version": 3}


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


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
    assert tracker.finish("FINISHED", timeout_s=300)
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
    assert run.data.tags["aent.hosts"] == socket.gethostname()
    assert "mlflow.parentRunId" not in run.data.tags
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
    assert tracker.finish("FINISHED", timeout_s=300)
    client, run_id = client_of(run_dir)
    experiment = client.get_run(run_id).info.experiment_id
    table = client.load_table(experiment, f"samples/step_{steps - 1:06d}.json", [run_id])
    assert list(table.columns) == list(ROW)
    assert table["response"].tolist() == [2]  # as pandas reads it
    assert table["version"].tolist() == [3]
    assert table["entropy"].isna().all()
    assert len(client.list_artifacts(run_id, "samples")) == steps  # though not all in the tag


def test_files_of_others_are_artifacts_once_and_large_ones_stay(
    run_dir, recipe, monkeypatch, capfd
):
    monkeypatch.setattr(tracker_module, "LARGEST_FILE", 5)
    (run_dir / "profiles").mkdir()
    for name, text in (("a.gz", "small"), ("b.gz", "large as it is")):
        (run_dir / "profiles" / name).write_text(text)

    def find():
        return sorted((run_dir / "profiles").glob("*.gz"))

    def fail():
        raise OSError("the disk is away")

    for _ in range(2):  # the second continues the first one's journal
        tracker = Tracker(run_dir, recipe)
        tracker.log_files("profiles", find)
        tracker.log_files("profiles", fail)
        assert tracker.finish("FINISHED", timeout_s=300)
        assert tracker.failures == 1
        assert_names(capfd.readouterr().err, "profiles", "the disk is away")
    client, run_id = client_of(run_dir)
    assert [a.path for a in client.list_artifacts(run_id, "profiles")] == ["profiles/a.gz"]
    entries = [e for e, _ in journal.entries(run_dir / "journal.jsonl") if isinstance(e, File)]
    assert [(e.file, e.folder) for e in entries] == [("profiles/a.gz", "profiles")]


def test_the_journal_sent_twice_is_the_same_as_once(run_dir, recipe):
    tracker = Tracker(run_dir, recipe)
    for step in range(3):
        tracker.log(step, {"a": float(step), "b": math.nan})
    assert tracker.finish("KILLED", timeout_s=300)
    points = list(journal.read(run_dir / "journal.jsonl"))
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
    """A store that cannot be opened at first: training reports it once, and nothing is lost."""
    database = run_dir.parent / "mlflow.db"
    content = database.read_bytes()
    database.write_bytes(b"not a database, but of some length" * 100)
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"a": 1.0})
    deadline = time.monotonic() + 300
    while tracker.failures < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.failures >= 2
    with database.open("r+b") as file:  # an empty one the tracker, which may look, would fill
        file.write(content)
    for step in (1, 2):
        tracker.log(step, {"a": 1.0})
    assert tracker.finish("FINISHED", timeout_s=300)
    assert history(run_dir, "a") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    said = capfd.readouterr().err
    first, again = (line for line in said.splitlines() if line.startswith("aent: "))
    assert_names(first, "MLflow", run_dir / "journal.jsonl")
    assert_names(again, "MLflow")


def test_finish_does_not_wait_for_a_silent_server(run_dir, recipe, monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = Tracker(run_dir, recipe)
        tracker.log(0, {"a": 1.0})
        assert not tracker.finish("FINISHED", timeout_s=0.5)
        said = capfd.readouterr().err
        assert_names(said, "3 entries", "0.5 s", f"aent mlflow-sync {run_dir}")
        (run_dir / "recipe.yaml").write_text(dump(recipe))
        (run_dir / "mlflow_run_id").write_text("0" * 32)
        assert not mark_ended(run_dir, "FAILED", timeout_s=2.0)
        said = capfd.readouterr().err
        assert_names(said, run_dir, "FAILED")
    (run_dir / "mlflow_run_id").unlink()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # they send to the file beside the run then, and end
    assert tracker._points.join(120)
    assert tracker._uploads.join(120)
    assert next(journal.read(run_dir / "journal.jsonl")).value == 1.0


def test_a_name_that_some_stores_refuse_is_kept_in_the_journal_only(run_dir, recipe, capfd):
    assert journal.colliding("a/b", ["a"]) == "a"
    assert journal.colliding("a", ["c", "a/b"]) == "a/b"
    assert journal.colliding("ab", ["a", "ab/c/d"]) == "ab/c/d"
    assert journal.colliding("ab", ["a", "abc/d"]) is None
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"a": 1.0})
    tracker.log(1, {"a/b": 1.0, "c": 2.0})
    assert tracker.finish("FINISHED", timeout_s=300)
    client, run_id = client_of(run_dir)
    assert client.get_run(run_id).data.metrics == {"a": 1.0, "c": 2.0}
    assert len(list(journal.read(run_dir / "journal.jsonl"))) == 3
    assert_names(capfd.readouterr().err, "a/b", "a", "journal")


KILLED_RUN = """
import os, sys, time
from pathlib import Path
from aent.recipe.load import load
from aent.tracking.tracker import Tracker
from aent.tracking import tracker as tracker_module
run_dir = Path(sys.argv[1])
tracker = Tracker(run_dir, load(run_dir / "recipe.yaml"))
deadline = time.monotonic() + 300
while not (run_dir / "mlflow_run_id").is_file() and time.monotonic() < deadline:
    time.sleep(0.05)
tracker.log(0, {"a": 1.0})
os._exit(1)
"""


@pytest.mark.slow
def test_mark_ended_speaks_for_a_process_that_died(run_dir, recipe):
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    done = subprocess.run([sys.executable, "-c", KILLED_RUN, str(run_dir)], timeout=600)
    assert done.returncode == 1
    client, run_id = client_of(run_dir)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert mark_ended(run_dir, "KILLED", timeout_s=300)
    assert client.get_run(run_id).info.status == "KILLED"
    assert history(run_dir, "a") == [(0, 1.0)]
    assert mark_ended(run_dir, "FAILED", timeout_s=300)  # a final status stays
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_mark_ended_makes_the_run_that_died_before_mlflow_heard_of_it(run_dir, recipe):
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    assert mark_ended(run_dir, "FAILED", timeout_s=300)
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
    first = [Point(0, 5, "a", 0.1), Point(0, 5, "b", math.inf)]
    journal.append(path, [*first, File(6, "samples/x.json", "samples"), Status(7, "RUNNING")])
    journal.append(path, [Point(1, 6, "a", 1 / 3)])
    text = path.read_text()
    assert list(journal.read(path))[2] == Point(1, 6, "a", 1 / 3)
    path.write_text(text[:-4])
    assert list(journal.read(path)) == first
    assert journal.last_status(path) == "RUNNING"
    journal.drop_torn_line(path)
    journal.append(path, [Status(8, "KILLED")])
    assert [entry for entry, _ in journal.entries(path)] == [
        *first, File(6, "samples/x.json", "samples"), Status(7, "RUNNING"), Status(8, "KILLED")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "damaged", [b'{"step": 0}', b"\0" * 11, b"\xff\xfe not text", b"[1, 2, 3]"]
)
def test_a_damaged_line_is_named_and_costs_itself_only(tmp_path, capsys, damaged):
    path = tmp_path / "journal.jsonl"
    first, second = Point(0, 1, "a", 1.0), Point(1, 2, "a", 0.5)
    journal.append(path, [first])
    with path.open("ab") as file:
        file.write(damaged + b"\n")
    journal.append(path, [second, Status(3, "KILLED")])
    assert list(journal.read(path)) == list(journal.read(path)) == [first, second]
    assert journal.last_status(path) == "KILLED"
    place = 49 + len(damaged) + 1
    (line,) = capsys.readouterr().err.splitlines()
    assert_names(line, path, f"byte {place}")


def test_a_damaged_last_line_is_nothing_left_to_send(run_dir, recipe):
    path = run_dir / "journal.jsonl"
    journal.append(path, [Point(0, 1, "a", 1.0)])
    with path.open("ab") as file:
        file.write(b"\0" * 11 + b"\n")
    sender = Sender(run_dir, recipe)
    assert sender.left() == 1
    sender.send()
    assert sender.left() == 0
    assert everything_sent(run_dir)


def test_what_comes_in_the_place_of_a_lost_end_is_sent(run_dir, recipe):
    """A machine lost its power: its disk has what was sent, and not the journal's last lines."""
    path = run_dir / "journal.jsonl"
    journal.append(path, [Point(0, 1, "a", 1.0)])
    whole = path.read_bytes()
    journal.append(path, [Point(1, 2, "a", 2.0), Point(2, 3, "a", 3.0)])
    Sender(run_dir, recipe).send()
    path.write_bytes(whole + b"\0" * 20)
    journal.drop_torn_line(path)
    assert path.read_bytes() == whole
    assert not everything_sent(run_dir)
    journal.append(path, [Point(1, 2, "a", 2.0), Point(2, 3, "another", 3.0)])
    Sender(run_dir, recipe).send()
    assert history(run_dir, "another") == [(2, 3.0)]
    assert everything_sent(run_dir)


def test_last_words_on_a_full_disk_are_a_sentence(tmp_path, capsys, monkeypatch):
    journal.append(tmp_path / "journal.jsonl", [Status(1, "RUNNING")])

    def full(path: Path, new: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(journal, "append", full)
    assert not mark_ended(tmp_path, "FAILED")
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_run_id_is_none(run_dir, recipe, content):
    (run_dir / "mlflow_run_id").write_text(content)
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"a": 1.0})
    assert tracker.finish("FINISHED", timeout_s=300)
    assert history(run_dir, "a") == [(0, 1.0)]


def test_an_append_that_does_not_fit_leaves_no_half_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal.append(path, [Point(0, 5, "a", 0.1)])
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"No space left|File too large"):
            journal.append(path, [Point(1, 5, "a", 0.1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole


class LateFile(io.FileIO):
    """A file on NFS: that the disk is full is found when the file is closed (close(2))."""

    def write(self, data):
        super().write(data[: len(data) // 2])
        return len(data)

    def close(self):
        late = not self.closed
        super().close()
        if late:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_append_that_fails_as_its_file_is_closed_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    first, second = [Point(step, 5, "a", 0.1) for step in range(2)]
    journal.append(path, [first])
    with monkeypatch.context() as on_nfs:
        on_nfs.setattr(Path, "open", lambda path, mode, buffering: LateFile(path, mode))
        with pytest.raises(OSError, match="No space left"):
            journal.append(path, [second])
    journal.append(path, [second])
    assert list(journal.read(path)) == [first, second]


# -- a run that continues


def test_a_resumed_run_is_one_run_and_repeated_steps_are_not_logged_again(
    run_dir, recipe, tmp_path, capfd
):
    first = Tracker(run_dir, recipe)
    for step in range(3):
        first.log(step, {"loss": step / 3, "nan": math.nan, "time/total": 1.0})
        first.log_samples(step, [ROW])
    assert first.finish("KILLED", timeout_s=300)
    client, run_id = client_of(run_dir)
    assert client.get_run(run_id).info.status == "KILLED"
    with (run_dir / "journal.jsonl").open("a") as file:  # as a kill leaves it
        file.write('{"step": 3, "ti')
    (run_dir / "mlflow_run_id").unlink()
    capfd.readouterr()

    changed = load(tmp_path / "r.yaml", ["steps=7", "tracking.system_metrics_every_s=0"])
    second = Tracker(run_dir, changed, run_id)
    second.log(1, {"loss": 1 / 3, "nan": math.nan, "time/total": 2.0})
    second.log(2, {"loss": 0.7, "nan": 0.0, "time/total": 2.0})
    second.log_samples(2, [ROW | {"reward": 0.0}])
    second.log(3, {"loss": 1.0, "nan": math.nan, "time/total": 2.0})
    second.log_samples(3, [ROW])
    assert second.finish("FINISHED", timeout_s=300)
    said = capfd.readouterr().err
    (again,) = (line for line in said.splitlines() if line.startswith("aent: step "))
    assert_names(again, "step 2", 3, "nan")  # times may differ, and step 1 is the same
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "1"
    assert run.data.tags["aent.changed.steps"] == "7"
    assert history(run_dir, "loss") == [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0)]
    assert history(run_dir, "time/total") == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]
    assert len(client.list_artifacts(run_id, "samples")) == 4
    assert [t["path"] for t in json.loads(run.data.tags["mlflow.loggedArtifacts"])] == [
        f"samples/step_{step:06d}.json" for step in range(4)
    ]
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_the_difference_of_a_repeated_step_is_the_largest_relative_one(run_dir, recipe, capfd):
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"large": 1000.0, "small": 0.001, "same": 5.0})
    tracker.log(0, {"large": 1000.5, "small": 0.002, "same": 5.0})
    assert tracker.finish("FINISHED", timeout_s=300)
    said = capfd.readouterr().err
    assert_names(said, "step 0", 2, 3, "small", 0.001, 0.002)
    assert "large" not in said


def test_a_creation_whose_answer_was_lost_is_found_again(run_dir, recipe):
    journal.append(run_dir / "journal.jsonl", [Status(1, "RUNNING")])
    one, again = Store.create(recipe, run_dir), Store.create(recipe, run_dir)
    assert one.run_id == again.run_id
    other = run_dir.parent / "other"
    other.mkdir()
    journal.append(other / "journal.jsonl", [Status(1, "RUNNING")])
    assert Store.create(recipe, other).run_id != one.run_id


def test_a_sweeps_run_lies_under_its_parent_and_slurm_is_named(run_dir, recipe, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST_HET_GROUP_0", "gpu[01-04]")
    monkeypatch.setenv("SLURM_JOB_NODELIST_HET_GROUP_1", "cpu7")
    monkeypatch.setenv("AENT_IMAGE", "/images/trainer.sqsh")
    monkeypatch.setenv("AENT_IMAGE_DIGEST", "sha256:ab")
    tracking = recipe.tracking.model_copy(update={"parent_run_id": "f" * 32})
    tracker = Tracker(run_dir, recipe.model_copy(update={"tracking": tracking}))
    assert tracker.finish("FINISHED", timeout_s=300)
    client, run_id = client_of(run_dir)
    tags = client.get_run(run_id).data.tags
    assert tags["mlflow.parentRunId"] == "f" * 32
    assert tags["aent.slurm_job_id"] == "4711"
    assert tags["aent.hosts"] == "gpu[01-04],cpu7"
    assert (tags["aent.image"], tags["aent.image_digest"]) == ("/images/trainer.sqsh", "sha256:ab")


def test_the_commit_is_the_checkouts_or_else_that_of_the_image(monkeypatch, tmp_path):
    monkeypatch.setenv("AENT_GIT_COMMIT", "c0ffee")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert dict(store._git_tags())["mlflow.source.git.commit"] == head.stdout.strip()
    monkeypatch.setattr(store, "__file__", str(tmp_path / "aent" / "tracking" / "store.py"))
    assert dict(store._git_tags()) == {"mlflow.source.git.commit": "c0ffee"}
    monkeypatch.delenv("AENT_GIT_COMMIT")
    assert dict(store._git_tags()) == {}


def test_system_metrics_go_through_the_journal_and_count_on_after_a_resume(run_dir, recipe):
    tracking = recipe.tracking.model_copy(update={"system_metrics_every_s": 0.05})
    watched = recipe.model_copy(update={"tracking": tracking})
    (run_dir / "system").mkdir()
    other = {"time": 1.0, "values": {"gpu_0_utilization_percentage": 90.0}}
    (run_dir / "system" / "node7.json").write_text(json.dumps(other))
    for _ in range(2):
        tracker = Tracker(run_dir, watched)
        before = len(list(journal.read(run_dir / "journal.jsonl")))
        deadline = time.monotonic() + 300
        with node_metrics.reported(run_dir, 0.05):
            while len(list(journal.read(run_dir / "journal.jsonl"))) < before + 8:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert tracker.finish("FINISHED", timeout_s=300)
        assert not tracker._known._values  # weeks of many machines would not fit into memory
    here = f"system/{node_metrics.host()}"
    logged = history(run_dir, f"{here}/cpu_utilization_percentage")
    assert len({step for step, _ in logged}) == len(logged) >= 2
    assert history(run_dir, f"{here}/system_memory_usage_megabytes")[0][1] > 0
    # a machine whose file stays as it is is heard of once a start
    told = history(run_dir, "system/node7/gpu_0_utilization_percentage")
    assert [value for _, value in told] == [90.0, 90.0]


def test_a_tag_goes_through_the_journal_and_its_newest_text_counts(run_dir, recipe):
    tracker = Tracker(run_dir, recipe)
    tracker.log(0, {"reward/mean": 0.5})
    tracker.tag("aent.alert.reward", "since step 0: it is nan")
    tracker.log(1, {"reward/mean": 0.5})
    tracker.tag("aent.alert.reward", "over with step 1" + "." * 6000)
    assert tracker.finish("FINISHED")
    client, run_id = client_of(run_dir)
    assert client.get_run(run_id).data.tags["aent.alert.reward"].startswith("over with step 1..")
    assert [value for _, value in history(run_dir, "reward/mean")] == [0.5, 0.5]
    told = journal.tags(run_dir / journal.JOURNAL_FILE)
    assert [tag.text[:16] for tag in told.values()] == ["over with step 1"]
    assert journal.tags(run_dir / "none") == {}
