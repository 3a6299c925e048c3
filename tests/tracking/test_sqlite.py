"""MLflow's store in a file: complete or absent; an incomplete one is named."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from aent.tracking import sqlite
from aent.tracking.sqlite import Making, StoreError, make_ready
from wording import naming


@pytest.mark.slow
def test_a_store_is_made_whole_beside_what_a_dead_process_left(tmp_path):
    path = tmp_path / "mlflow.db"
    path.touch()  # nothing is in it
    (tmp_path / ".mlflow.db.new").write_bytes(b"cut short")
    making = Making.begin(path, tmp_path / "logs" / "store.log")
    while not making.done():
        time.sleep(0.05)
    shutil.rmtree(tmp_path / "logs")
    assert Making.begin(path, tmp_path / "logs" / "store.log") is None
    assert [e.name for e in MlflowClient(f"sqlite:///{path}").search_experiments()] == ["Default"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
    inode = path.stat().st_ino
    make_ready(path)
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("made", ["tables", "no rows", "something else"])
def test_a_half_made_store_is_named_with_how_to_mend_it(tmp_path, made):
    path = tmp_path / "mlflow.db"
    if made == "something else":
        path.write_bytes(b"no database, but of some length" * 100)
    else:
        with sqlite3.connect(path) as database:
            table = "runs" if made == "tables" else "experiments"
            database.execute(f"CREATE TABLE {table} (name TEXT)")
    for make in (make_ready, sqlite.make_ready_apart):
        with pytest.raises(StoreError, match=naming(path)):
            make(path)


def test_a_folder_that_cannot_hold_it_is_one_sentence(tmp_path):
    for make in (make_ready, sqlite.make_ready_apart, sqlite.check):
        with pytest.raises(StoreError, match=naming(f"{tmp_path}/none/mlflow.db")):
            make(tmp_path / "none" / "mlflow.db")


def test_a_store_that_cannot_be_made_meanwhile_is_the_same_sentence(tmp_path):
    path = tmp_path / "none" / "mlflow.db"
    making = Making.begin(path, tmp_path / "logs" / "store.log")
    making.child.process.wait(timeout=300)
    with pytest.raises(StoreError, match=naming(path)):
        making.done()


@pytest.mark.slow
def test_a_death_while_it_is_made_leaves_no_store(tmp_path):
    path, partial = tmp_path / "mlflow.db", tmp_path / ".mlflow.db.new"
    maker = subprocess.Popen([sys.executable, "-m", "aent.tracking.sqlite", str(path)])
    deadline = time.monotonic() + 300
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    assert partial.exists()
    assert not path.exists()


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:////a/b.db?timeout=5", "/a/b.db"),
        ("sqlite://", None),
        ("http://host", None),
    ],
)
def test_file_of_a_store(uri, name):
    assert str(sqlite.file_of(uri) or "") == (name or "")
