"""One cluster for all tests that need one, and jobs that end with their test."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm import cluster as slurm
from slurm.jobs import Job

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "slurm"
TINY = "recipes/cpu/tiny.yaml"
PATIENT = "rollout.engine.start_timeout_s=800"  # engines start late on a loaded machine
# few processes: what these jobs test does not depend on the layout
LIGHT = (PATIENT, "task.heldout=0", "checkpoint.every=1", "trainer.tensor_parallel=1")
LIGHT += ("trainer.pipeline_parallel=1",)
TWO_NODES = ("--nodes=2", "--gpus-per-node=0", str(SLURM / "train.sbatch"), TINY)


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


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of this process that jobs should see."""
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PREFLIGHT_FLAGS", "--disk-gib=1 --shm-gib=0.5")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def sweep(cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Job]:
    """Two finished runs of the tiny recipe, four steps each, on one node each: as it is (what
    disturbed runs are compared with), and with a constant coefficient and a single rank."""
    folder = tmp_path_factory.mktemp("sweep")
    constant = "'controller={kind: constant, initial: 0.02}'"
    variants = ["seed=1", f"{constant} trainer.tensor_parallel=1 trainer.pipeline_parallel=1"]
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        clean_environment(monkeypatch)
        flags = ("--array=0-1", "--gpus-per-node=0", str(SLURM / "sweep.sbatch"))
        array = cluster.submit(*flags, TINY, "variants.txt", "task.heldout=0", PATIENT, cwd=folder)
        name = f"aent-sweep-{array}"
        jobs = [
            Job(cluster, f"{array}_{n}", folder / f"runs/{name}_{n}", folder / f"{name}_{n}.log")
            for n in range(2)
        ]
        for job in jobs:
            assert job.wait() == "COMPLETED", job.log
    return jobs[0], jobs[1]


@pytest.fixture
def submit(
    cluster: slurm.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Job]]:
    """A factory of jobs: sbatch flags, a script of slurm/ and its arguments in, a Job out; or
    ``aent``, what follows ``aent slurm submit``."""
    clean_environment(monkeypatch)
    jobs: list[Job] = []

    def start(*arguments: str) -> Job:
        if arguments[0] == "aent":
            command = (sys.executable, "-m", "aent", "slurm", "submit", *arguments[1:])
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
