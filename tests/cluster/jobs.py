"""A batch job of the test cluster: its state, its log, its run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cluster import POLL_S, Cluster

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DEADLINE_S = 300.0  # a loaded machine
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

    def wait(self) -> str:
        """Its last state; fails, with its log, if it has none in time."""
        deadline = time.monotonic() + DEADLINE_S
        while (state := self.cluster.state(self.number)) not in OVER:
            assert time.monotonic() < deadline, f"{state}:\n{self.log}\n{self.cluster.logs()}"
            time.sleep(POLL_S)
        return state

    def wait_for(self, words: str) -> None:
        """Return when its log has these words."""
        deadline = time.monotonic() + DEADLINE_S
        while words not in self.log:
            state = self.cluster.state(self.number)
            assert state not in OVER, f"{state} before it said {words!r}:\n{self.log}"
            assert time.monotonic() < deadline, f"did not say {words!r}:\n{self.log}"
            time.sleep(POLL_S)

    def cancel(self) -> None:
        """End it, if it is not over; return when its nodes are free."""
        self.cluster.run("scancel", self.number, check=False)
        self.wait()
        self.cluster.wait_until_idle()

    def mlflow(self) -> tuple[MlflowClient, Run]:
        """MLflow's store and the run in it."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{self.run_dir.parent / 'mlflow.db'}")
        return client, client.get_run((self.run_dir / "mlflow_run_id").read_text().strip())
