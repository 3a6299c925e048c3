"""One cluster for all tests that need one, and jobs that are over when their test is."""

from __future__ import annotations

import os
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
    """A factory of jobs: sbatch flags, a script of slurm/ and its arguments in, a Job out."""
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PREFLIGHT_FLAGS", "--disk-gib=1 --shm-gib=0.5")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    jobs: list[Job] = []

    def start(*arguments: str) -> Job:
        jobs.append(Job.submit(cluster, tmp_path, *arguments))
        return jobs[-1]

    yield start
    for job in jobs:
        job.cancel()
