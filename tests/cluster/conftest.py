"""One cluster for all tests that need one, and jobs that are over when their test is."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import cluster as slurm
from cluster.jobs import Job

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """Four idle nodes, each with four GPUs that are device files only."""
    reason = slurm.why_not()
    if reason:
        pytest.skip(f"no Slurm cluster can be started here: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="aent-") as folder,  # a socket's path must be short
        slurm.running(Path(folder), nodes=4) as cluster,
    ):
        yield cluster


@pytest.fixture
def submit(
    cluster: slurm.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Job]]:
    """A factory of jobs: sbatch flags, a script of slurm/ and its arguments in, a Job out; or
    ``aent``, what follows ``aent slurm submit``."""
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PREFLIGHT_FLAGS", "--disk-gib=1 --shm-gib=0.5")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    jobs: list[Job] = []

    def start(*arguments: str) -> Job:
        if arguments[0] == "aent":
            command = (sys.executable, "-m", "aent.cli", "slurm", "submit", *arguments[1:])
            number, script = re.fullmatch(
                r"job (\d+): (.*)\.sbatch\n", cluster.run(*command, cwd=tmp_path).stdout
            ).groups()
            job = Job(cluster, number, Path(script), Path(f"{script}.log"))
        else:
            number = cluster.submit(*arguments, cwd=tmp_path)
            name = f"aent-{number}"
            job = Job(cluster, number, tmp_path / "runs" / name, tmp_path / f"{name}.log")
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.cancel()
