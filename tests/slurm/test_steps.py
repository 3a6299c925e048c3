"""What only a real Slurm shows of the batch script: devices and cores of its tasks, a preemption
with a grace time, the signal before the time limit, requeues to their end. The steps do nothing but
what a test tells them, so that these take seconds."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import CORES, Cluster
from slurm.conftest import ROOT, SLURM, TINY
from slurm.jobs import Job
from wording import assert_names

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

NOBODY = "65534"
# in the place of PYTHON, called as `PYTHON -m aent.slurm.STEP RUN_DIR ...`; two ranks on each of
# the job's nodes and an engine on the first
STEPS = r"""#!/bin/bash
run=$3
seen() {
  cores=$(sed -n 's/^Cpus_allowed_list:\s*//p' /proc/self/status)
  place="$SLURM_PROCID $(hostname) $SLURM_LOCALID"
  echo "$1 $place ${CUDA_VISIBLE_DEVICES-unset} $cores" >>"$run/seen"
}
case $2 in
  aent.slurm.prepare)
    [ -z "${REAL_PREPARE:-}" ] || exec "$REAL_PREPARE" "$@"
    mkdir -p "$run/logs" "$run/heartbeats"
    nodes=${4#--nodes=}
    printf '%s\n' FINISHED= MODEL_PATH=/m DISK_GIB=1 RANKS=$((2 * nodes)) RANKS_PER_NODE=2 \
      ENGINES=1 ENGINE_NODES=1 ENGINES_PER_NODE=1 FIRST_ENGINE_GPU=2 >"$run/job.env"
    for ((rank = 0; rank < 2 * nodes; rank++)); do touch "$run/heartbeats/rank$rank.json"; done ;;
  aent.slurm.serve) seen engine; exec sleep 600 ;;
  aent.slurm.watch) trap '' TERM; seen watch; until [ -e "$run/verdict" ]; do sleep .1; done ;;
  aent.launch.rank)
    trap 'exit 85' USR1
    seen rank
    [ -z "${LEAVES:-}" ] || exit 85
    # a loop, for Slurm signals a task's children before the task
    [ -z "${ONCE:-}" ] || [ -n "${SLURM_RESTART_COUNT:-}" ] || while :; do sleep 1; done ;;
esac
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """That an ordinary user may write into, with the stand-in for PYTHON."""
    with tempfile.TemporaryDirectory(prefix="aent-steps-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "steps").write_text(STEPS)
        (folder / "steps").chmod(0o755)
        for script in SLURM.glob("*.sbatch"):  # of a checkout that others cannot read
            (folder / script.name).write_text(script.read_text())
        yield folder


def send(
    cluster: Cluster,
    folder: Path,
    name: str,
    *flags: str,
    user: str = "0",
    recipe: str = "recipe.yaml",
    **env: str,
) -> Job:
    """A job of that user whose run and log lie in the folder."""
    own = {"RUN_DIR": str(folder / name), "PYTHON": str(folder / "steps"), **env}
    settings = [f"{key}={value}" for key, value in own.items()]
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "env", *settings]
    script = [str(folder / "train.sbatch"), recipe]
    log = folder / f"{name}.log"
    command = ["sbatch", "--parsable", f"--output={log}", *flags, *script]
    number = cluster.run(*as_user, *command, cwd=folder).stdout.strip()
    return Job(cluster, number, folder / name, log)


def seen(job: Job, kind: str) -> list[list[str]]:
    lines = (line.split() for line in (job.run_dir / "seen").read_text().splitlines())
    return sorted(line[1:] for line in lines if line[0] == kind)


def wait_until_works(job: Job, nodes: int = 1) -> None:
    """Return when each rank, the engine and the watcher can be signalled."""
    file, tasks = job.run_dir / "seen", 2 * nodes + 2
    job.wait_until(
        lambda: file.exists() and len(file.read_text().splitlines()) == tasks,
        f"{tasks} tasks ran",
    )


def test_a_job_sees_its_own_gpus_alone_and_all_of_them(cluster: Cluster, folder: Path) -> None:
    """One of them in containers; MLflow is to hear of the end of both."""
    shared = ("--exclusive=user", "--ntasks-per-node=1", "--cpus-per-task=4", "--nodelist=node0")
    jobs = [
        send(cluster, folder, "shared0", *shared, "--gpus-per-node=2", ONCE="1"),
        send(cluster, folder, "shared1", *shared, "--gres=gpu:2", ONCE="1", **contained(folder)),
    ]
    whole = send(cluster, folder, "whole", "--nodes=2", "--gpus-per-node=4")
    assert whole.wait() == "COMPLETED", whole.log
    ranks = seen(whole, "rank")
    assert [rank[:3] for rank in ranks] == [
        ["0", "node1", "0"],
        ["1", "node1", "1"],
        ["2", "node2", "0"],
        ["3", "node2", "1"],
    ]
    assert {rank[3] for rank in ranks} == {"0,1,2,3"}
    devices = []
    for job in jobs:
        wait_until_works(job)
        assert cluster.state(job.number) == "RUNNING", job.log
        (engine,), ranks = seen(job, "engine"), seen(job, "rank")
        assert {rank[3] for rank in ranks} == {engine[3]}
        devices += engine[3].split(",")
    assert sorted(devices) == ["0", "1", "2", "3"]  # each job's are its own
    cluster.run("scancel", *(job.number for job in jobs))
    for job in jobs:
        assert job.wait() == "CANCELLED", job.log
        assert (job.run_dir / "verdict").read_text() == "KILLED\n"
    assert (folder / ".cache" / "digests").is_dir()  # of the image
    cluster.wait_until_idle()


def contained(folder: Path) -> dict[str, str]:
    """Settings of a job whose steps run by ``apptainer.sh``, where nothing of /tmp is seen but the
    folder that the job is sent from."""
    (folder / "apptainer").write_text(Path(__file__).with_name("apptainer.sh").read_text())
    (folder / "apptainer").chmod(0o755)
    (folder / "image").write_bytes(b"an image")
    path = f"{folder}:{os.environ['PATH']}"
    images = dict.fromkeys(("IMAGE", "ENGINE_IMAGE"), str(folder / "image"))
    return {"PATH": path, "CONTAINER": "apptainer", "MOUNTS": f"{folder}:{folder}", **images}


def test_a_preemption_with_a_grace_time_is_a_requeue(cluster: Cluster, folder: Path) -> None:
    """Slurm signals only the steps, and requeues the job itself when that time is over."""
    flags = ("--partition=grace", "--nodes=2", "--gpus-per-node=0")
    job = send(cluster, folder, "run", *flags, user=NOBODY, ONCE="1")
    wait_until_works(job, nodes=2)
    cluster.submit(
        "--partition=urgent", "--nodes=4", "--exclusive", "--wrap=true", "--output=/dev/null"
    )
    assert job.wait() == "COMPLETED", job.log
    assert job.log.count("aent: requeued") == 1, job.log
    assert cluster.show(job.number)["Restarts"] == "1"
    cluster.wait_until_idle()


@pytest.mark.skipif(CORES < 2, reason="this machine has one core")
def test_each_task_is_bound_to_cores_of_its_own(cluster: Cluster, folder: Path) -> None:
    """Whatever the job was sent from was bound to."""
    flags = ("--partition=bound", "--nodes=1", "--gpus-per-node=0")
    leaks = {"SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_CPU_BIND_TYPE": "mask_cpu:"}
    job = send(cluster, folder, "run", *flags, ONCE="1", SLURM_CPUS_PER_TASK="1", **leaks)
    wait_until_works(job)
    cluster.run("scancel", job.number)
    assert job.wait() == "CANCELLED", job.log
    (engine,), ranks = seen(job, "engine"), seen(job, "rank")
    first, second = (cores_of(rank[4]) for rank in ranks)
    assert len(first) == len(second) == CORES // 2
    assert not first & second
    assert len(cores_of(engine[4])) == CORES
    cluster.wait_until_idle()


def cores_of(listed: str) -> set[int]:
    """The numbers of a list such as 0-3,8."""
    ends = (part.split("-") for part in listed.split(","))
    return {core for end in ends for core in range(int(end[0]), int(end[-1]) + 1)}


def test_a_time_limit_is_a_requeue_and_requeues_without_progress_have_an_end(
    cluster: Cluster, folder: Path
) -> None:
    """Two jobs at once, for the limit takes its time."""
    # Slurm looks at the limits every 30 s, and signals up to 30 s early: here 60 s to 90 s after
    # the start, when the ranks run even on a loaded machine
    flags = ("--nodes=1", "--gpus-per-node=0", "--time=3", "--signal=B:USR1@90")
    job = send(cluster, folder, "run", *flags, user=NOBODY, ONCE="1", SAVE_MARGIN="5")
    prepare = {"REAL_PREPARE": sys.executable, "MAX_REQUEUES": "1", "LEAVES": "1"}
    flags = ("--nodes=1", "--gpus-per-node=0")
    other = send(cluster, folder, "other", *flags, recipe=str(ROOT / TINY), **prepare)
    assert job.wait() == "COMPLETED", job.log
    assert "aent: asked to end" in job.log
    assert cluster.show(job.number)["Restarts"] == "1"
    assert os.stat(job.run_dir).st_uid == int(NOBODY)
    assert other.wait() == "FAILED", other.log
    assert other.log.count("aent: requeued") == 2
    assert cluster.show(other.number)["Restarts"] == "2"
    assert_names(other.log, "MAX_REQUEUES=1", "2 times in a row")
    cluster.wait_until_idle()
