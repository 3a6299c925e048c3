"""A batch job of the test cluster: its state, its log, its run."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from aent.tracking.sender import sync
from aent.tracking.store import known_run_id
from e2e.compare import series
from slurm.cluster import POLL_S, Cluster

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DEADLINE_S = 900.0  # a loaded machine; a minute or two on an idle one
CURVE = ("reward/mean", "policy/clamped_entropy", "update/grad_norm", "controller/coefficient")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Job:
    """Made by the fixture ``submit``."""

    cluster: Cluster
    number: str
    run_dir: Path
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def steps_done(self) -> int:
        """The newest step that its log shows, counted from 1."""
        return int(re.findall(r"\] step +(\d+)/", self.log)[-1])

    def wait(self) -> str:
        """Its last state; fails, with its log, if it has none in time."""
        deadline = time.monotonic() + DEADLINE_S
        while (state := self.cluster.state(self.number)) not in OVER:
            assert time.monotonic() < deadline, f"{state}:\n{self.log}\n{self.cluster.logs()}"
            time.sleep(POLL_S)
        return state

    def wait_for(self, words: str, times: int = 1) -> None:
        """Return when its log has these words (so many times)."""
        self.wait_until(lambda: self.log.count(words) >= times, f"it said {words!r}")

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        """Return when this is true, which must be before the job is over."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            state = self.cluster.state(self.number)
            assert state not in OVER, f"{state} before {what}:\n{self.log}"
            assert time.monotonic() < deadline, f"not in time: {what}:\n{self.log}"
            time.sleep(POLL_S)

    def wait_for_status(self, status: str) -> None:
        """Return when its run has this status in MLflow, which hears of it in the background."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.mlflow()[1].info.status) != status:
            assert time.monotonic() < deadline, f"{found}, not {status}:\n{self.log}"
            time.sleep(POLL_S)

    def status(self) -> str:
        """The status of its run in MLflow, once the job is over. A last step that had no time to
        tell MLflow, on a loaded machine, says so, and then what it says to do is done."""
        if "aent mlflow-sync" in self.log:
            sync(self.run_dir)
        return self.mlflow()[1].info.status

    def curve(self, steps: int) -> dict[str, list[float]]:
        """The journal's values of the first steps, as the trainer computed them; every step once,
        or with the same value each time."""
        found = series(self.run_dir)
        values = {key: [found[key].get(step, set()) for step in range(steps)] for key in CURVE}
        assert all(len(v) == 1 for column in values.values() for v in column), values
        return {key: [next(iter(v)) for v in column] for key, column in values.items()}

    def tasks(self, module: str) -> dict[int, psutil.Process]:
        """The processes of the step that runs ``aent.launch.rank`` or ``aent.slurm.serve``, as this
        machine sees them, by their numbers in the step."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:4] == ["-m", module, str(self.run_dir)]:
                    found[int(process.environ()["SLURM_PROCID"])] = process
        return found

    def cancel(self) -> None:
        """End it, if it is not over; return when its nodes are free."""
        self.cluster.run("scancel", self.number, check=False)
        self.wait()
        self.cluster.wait_until_idle()

    def mlflow(self) -> tuple[MlflowClient, Run]:
        """MLflow's store and the run in it, once it is there: it is made in the background."""
        from mlflow.tracking import MlflowClient

        deadline = time.monotonic() + DEADLINE_S
        while not (run_id := known_run_id(self.run_dir)):
            assert time.monotonic() < deadline, f"MLflow has no run:\n{self.log}"
            time.sleep(POLL_S)
        client = MlflowClient(f"sqlite:///{self.run_dir.parent / 'mlflow.db'}")
        return client, client.get_run(run_id)
