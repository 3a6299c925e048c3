"""A real MLflow server that can die and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from processes import free_port
from waiting import wait_until


class Server:
    """``mlflow server`` with a SQLite store, on its own port; it can be killed and started
    again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        argv += ["--port", str(self.port), "--workers", "1"]
        argv += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        argv += ["--artifacts-destination", str(self.folder / "artifacts")]
        # the processes for MLflow's own jobs cost seconds each, and there are no such jobs here
        env = os.environ | {
            "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdout=log, stderr=log, env=env, start_new_session=True
            )
        wait_until(self.answers, "the server answers")

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
