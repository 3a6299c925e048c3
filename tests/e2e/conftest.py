"""Jobs that end with their test, and one engine shared by tests that do not need their own."""

from __future__ import annotations

import signal
import subprocess

import pytest

from e2e.engines import tiny_engine
from e2e.jobs import PATIENCE_S, Job


@pytest.fixture
def start_job(tmp_path):
    """A factory of jobs: overrides of the tiny recipe in, a running ``aent train`` out."""
    jobs: list[Job] = []

    def start(*overrides: str) -> Job:
        jobs.append(Job(tmp_path, *overrides))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.process.send_signal(signal.SIGTERM)
            try:
                job.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                job.process.kill()


@pytest.fixture(scope="session")
def tiny_url(tmp_path_factory):
    """The address of a server that outlives the runs (see ``tiny_engine``)."""
    with tiny_engine(tmp_path_factory.mktemp("engine")) as url:
        yield url


@pytest.fixture(scope="session")
def shared_engine(tiny_url):
    """Overrides of a run that samples from that server."""
    return "rollout.engines=0", f"rollout.urls=['{tiny_url}']"
