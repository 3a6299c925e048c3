"""The command as a user runs it: ``aent train recipes/cpu/tiny.yaml`` in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import psutil
import pytest

from aent.tracking.sender import sync
from aent.tracking.sqlite import make_ready_apart

TINY = "recipes/cpu/tiny.yaml"
PATIENCE_S = 900.0  # a loaded machine; a minute on an idle one


@cache
def empty_store() -> bytes:
    """A new store's file: making one costs seconds (tests/tracking/test_sqlite.py does)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        make_ready_apart(path)
        return path.read_bytes()


class Job:
    """A running ``aent train`` and what belongs to it.

    ``overrides`` may hold options too (``--resume``); ``env`` is added to the environment.
    """

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        recipe: str = TINY,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.run_dir = folder / "run"
        self.output = folder / "output.txt"
        if not (folder / "mlflow.db").exists():
            (folder / "mlflow.db").write_bytes(empty_store())
        self.mark = uuid.uuid4().hex  # in the environment of every process of the job
        argv = [sys.executable, "-m", "aent", "train", recipe, f"run_dir={self.run_dir}"]
        argv += [f"rollout.engine.start_timeout_s={PATIENCE_S}"]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*argv, *overrides],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **(env or {}), "AENT_TEST_JOB": self.mark},
                cwd=cwd,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, words: str) -> None:
        """Return when the output has these words."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.text:
            assert self.process.poll() is None, f"ended before it said {words!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"did not say {words!r}:\n{self.text}"
            time.sleep(0.2)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code; fails, with the output, if there is none in time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still runs after {timeout_s:.0f} s:\n{self.text}")

    def descendants(self) -> list[psutil.Process]:
        """Every process that the job has started, itself left out."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def survivors(self) -> list[psutil.Process]:
        """Every process of the job that still runs, even if it has another parent by now."""
        return [p for p in psutil.process_iter() if self.mark in job_mark(p)]

    def status(self) -> str:
        """The status of the job's run in MLflow's store, once the job is over. A launcher that had
        no time to tell MLflow, on a loaded machine, says so, and then what it says to do is
        done."""
        from mlflow.tracking import MlflowClient

        if "aent mlflow-sync" in self.text:
            sync(self.run_dir)
        client = MlflowClient(f"sqlite:///{self.run_dir.parent / 'mlflow.db'}")
        return client.get_run((self.run_dir / "mlflow_run_id").read_text().strip()).info.status


def job_mark(process: psutil.Process) -> str:
    """The job that a process belongs to; empty if it has none, is a zombie, or has just ended."""
    try:
        return process.environ().get("AENT_TEST_JOB", "")
    except psutil.Error:
        return ""
