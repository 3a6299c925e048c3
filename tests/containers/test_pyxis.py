"""``slurm/train.sbatch`` with ``CONTAINER=pyxis``, on a Slurm cluster with enroot and pyxis, in the
CPU image: home is not mounted, /tmp is a fresh tmpfs and the root is read-only."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from containers import pyxis
from containers.building import COMMIT, CPU_IMAGE, Built
from slurm import cluster as slurm
from slurm.conftest import LIGHT, PATIENT, SLURM, TINY
from slurm.jobs import Job

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400)]

STRICT = "--container-readonly --no-container-mount-home"
PYTHON = "/home/aent/aent/.venv/bin/python"  # of the image
SQUASH_S = 900.0  # to write the image's file, and to unpack it


@dataclass(frozen=True)
class Site:
    """A cluster whose jobs run in the image."""

    cluster: slurm.Cluster
    image: Path


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Site]:
    for reason in (slurm.why_not(), pyxis.why_not()):
        if reason:
            pytest.skip(f"no pyxis here: {reason}")
    sources = tmp_path_factory.mktemp("pyxis")
    if reason := pyxis.fetch(sources):
        pytest.skip(f"no source of enroot or pyxis: {reason}")
    made = pyxis.build(sources)
    built: Built = request.getfixturevalue("built")  # takes longest: last
    image = tmp_path_factory.mktemp("image") / "cpu.sqsh"
    squash(built, image)
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        tempfile.TemporaryDirectory(prefix="aent-") as folder,
    ):
        monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
        plugins = made.plugins(Path(folder) / "enroot")
        with slurm.running(Path(folder), nodes=2, plugins=plugins) as cluster:
            yield Site(cluster, image)


def squash(built: Built, image: Path) -> None:
    """The image as one file, as ``enroot import`` makes it of one in a registry: the environment
    of its configuration stands in a file."""
    container = built.store.container(CPU_IMAGE)
    root = built.store.buildah("mount", container).strip()
    environment = built.store.inspect(CPU_IMAGE)["Env"]
    (Path(root) / "etc/environment").write_text("".join(f"{line}\n" for line in environment))
    command = [
        "mksquashfs",
        root,
        str(image),
        "-all-root",
        "-comp",
        "lz4",
        "-no-progress",
        "-quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SQUASH_S)
    assert done.returncode == 0, done.stderr
    built.store.buildah("umount", container)


def submit(site: Site, folder: Path, *arguments: str) -> Job:
    settings = {"CONTAINER": "pyxis", "IMAGE": site.image, "ENGINE_IMAGE": site.image}
    settings |= {"PYTHON": PYTHON, "SRUN_FLAGS": STRICT, "PREFLIGHT_FLAGS": "--shm-gib=0.5"}
    env = ["env", *(f"{name}={value}" for name, value in settings.items())]
    script = ("sbatch", "--parsable", "--gpus-per-node=0", *arguments)
    number = site.cluster.run(*env, *script, cwd=folder).stdout.strip()
    return Job(site.cluster, number, folder / f"runs/aent-{number}", folder / f"aent-{number}.log")


def test_a_container_has_no_home_and_cannot_be_written_to(site: Site, tmp_path: Path) -> None:
    """The image that the jobs below run in."""
    look = 'echo home $(grep -c " $HOME " /proc/mounts); touch /x || echo read-only; '
    look += "df --output=fstype /tmp"
    flags = (f"--container-image={site.image}", *STRICT.split())
    command = ("srun", *flags, "sh", "-c", look)
    said = site.cluster.run(*command, cwd=tmp_path, timeout_s=SQUASH_S).stdout.split()
    assert said == ["home", "0", "read-only", "Type", "tmpfs"]


def test_a_run_over_two_nodes_finishes(site: Site, tmp_path: Path) -> None:
    script = (str(SLURM / "train.sbatch"), TINY)
    job = submit(site, tmp_path, "--nodes=2", *script, "steps=2", "task.heldout=0", PATIENT)
    assert job.wait() == "COMPLETED", job.log
    job.curve(2)
    run = job.mlflow()[1]
    digest = hashlib.file_digest(site.image.open("rb"), "sha256").hexdigest()
    assert run.data.tags["aent.image_digest"] == f"sha256:{digest}"
    assert run.data.tags["mlflow.source.git.commit"] == COMMIT
    assert (tmp_path / "runs" / ".cache").is_dir()  # it lasts


def test_a_cancelled_run_is_killed_in_mlflow(site: Site, tmp_path: Path) -> None:
    job = submit(
        site, tmp_path, "--nodes=1", str(SLURM / "train.sbatch"), TINY, *LIGHT, "steps=1000"
    )
    job.wait_for(" 2/1000")
    job.cancel()
    assert job.status() == "KILLED"
