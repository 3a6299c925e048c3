"""The batch script's own logic, with stand-ins for Slurm's programs (``slurm.fake``)."""

from __future__ import annotations

import hashlib
import signal
import time
from pathlib import Path

import pytest

from slurm.fake import FakeJob
from waiting import PATIENCE_S, wait_until

TERMINATED = "exit 143"  # what srun ends with when Slurm has sent TERM to its tasks
LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.fixture
def job(tmp_path: Path) -> FakeJob:
    return FakeJob(tmp_path)


def test_nothing_of_the_callers_job_or_launcher_reaches_a_task(job: FakeJob) -> None:
    foreign = {
        "SLURM_CPU_BIND": "mask_cpu:0x0f",
        "SLURM_CPU_BIND_TYPE": "mask_cpu:",
        "SLURM_MEM_PER_CPU": "2048",
        "SLURM_NTASKS": "1",
        "SLURM_GPUS": "1",
        "SLURM_GPU_BIND": "single:1",
        "SLURM_STEP_ID": "3",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "TORCHELASTIC_RUN_ID": "none",
        "SQUEUE_STATES": "RUNNING",
    }
    code, log = job.run(**foreign, SLURM_EXPORT_ENV="NONE", SLURM_GPUS_PER_NODE="h100:4")
    assert code == 0, log
    assert "--disk-gib=7.5" in job.step("preflight")[1]  # what prepare has counted
    for step in ("prepare", "preflight", "serve", "rank", "watch"):
        flags, _, seen = job.step(step)
        assert not foreign.keys() & seen.keys(), step
        assert {"MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"} <= seen.keys(), step
        assert "--overlap" in flags
    assert job.step("rank")[2]["HF_HUB_OFFLINE"] == "1"


def test_the_ranks_meet_at_a_port_that_no_outgoing_connection_takes(job: FakeJob) -> None:
    low, high = map(int, LOCAL_PORTS.read_text().split())
    if low <= 12000 and high >= 63000:
        pytest.skip(f"{LOCAL_PORTS}: the kernel takes any port")
    ports = set()
    for number in ("5015042", "5015043", "17"):
        assert job.run(SLURM_JOB_ID=number)[0] == 0
        port = int(job.step("rank")[2]["MASTER_PORT"])
        assert 1024 < port < 65536
        assert not low <= port <= high
        ports.add(port)
    assert len(ports) == 3


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({}, "0"),
        ({"SLURM_GPUS_PER_NODE": "8"}, "8"),
        ({"SLURM_GPUS_PER_NODE": "h100:8"}, "8"),
        ({"TRES": "gres:gpu:8"}, "8"),  # --gres=gpu:8, as Slurm before 23 shows it
        ({"TRES": "gres/gpu:h100:4,gres/x:1"}, "4"),
        ({"TRES": "gres/lscratch:100,gres/gpu:h100:4"}, "4"),
    ],
)
def test_gpus_are_counted_however_they_were_asked_for(
    job: FakeJob, given: dict[str, str], gpus: str
) -> None:
    code, log = job.run(**given)
    assert code == 0, log
    assert f"--gpus-per-node={gpus} " in job.step("prepare")[1]
    assert f"--gpus={gpus} " in job.step("preflight")[1]
    # Slurm names a step's GPUs in CUDA_VISIBLE_DEVICES, which --gpu-bind=none keeps it from
    assert not [flag for flag in job.step("rank")[0] if flag.startswith("--gpu")]


@pytest.mark.parametrize(("cores", "each"), [("16(x2)", 8), ("96,64(x2),128", 32)])
def test_tasks_get_the_cores_that_every_node_has(job: FakeJob, cores: str, each: int) -> None:
    code, log = job.run(SLURM_JOB_CPUS_PER_NODE=cores)
    assert code == 0, log
    assert f"--cpus-per-task={each}" in job.step("rank")[0]  # two ranks on a node
    assert f"--cpus-per-task={2 * each}" in job.step("serve")[0]
    assert f" --cpus={2 * each} --engine-cpus={2 * each} " in job.step("prepare")[1]


@pytest.mark.parametrize("given", ["run", "run/", "drop20%/it's"])
def test_a_run_folder_may_be_relative_and_have_any_name(job: FakeJob, given: str) -> None:
    images = {"CONTAINER": "apptainer", "IMAGE": "a.sif", "ENGINE_IMAGE": "b.sif"}
    code, log = job.run(RUN_DIR=given, **images)
    assert code == 0, log
    folder = job.folder / given
    flags, command, seen = job.step("rank")
    assert f"aent.launch.rank {folder} /m" in command
    # %% is srun's percent sign
    assert f"--error={str(folder).replace('%', '%%')}/logs/rank%t.log" in flags
    assert seen["XDG_CACHE_HOME"] == f"{folder.parent}/.cache"  # a new run's folder stays empty


def test_ranks_that_slurm_has_ended_alone_are_a_preemption(job: FakeJob) -> None:
    code, log = job.run(RANKS_DO=TERMINATED)
    assert (code, job.requeues) == (0, 1), log
    assert "aent: requeued" in log


def test_so_is_a_first_step_that_slurm_has_ended(job: FakeJob) -> None:
    code, log = job.run(PREPARE="143")
    assert (code, job.requeues) == (0, 1), log


def test_so_is_a_job_that_is_asked_to_end_as_it_begins(job: FakeJob) -> None:
    process = job.start(HELD="1")
    wait_until((job.folder / "held").exists, "it is held")
    process.send_signal(signal.SIGUSR1)
    (job.folder / "go").touch()
    log, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, job.requeues) == (0, 1), log
    assert not (job.folder / "steps" / "rank").exists()


@pytest.mark.parametrize("ranks", ["exit 1", "exit 137"])
def test_ranks_that_failed_are_not(job: FakeJob, ranks: str) -> None:
    code, log = job.run(RANKS_DO=ranks)
    assert (code, job.requeues) == (int(ranks.split()[1]), 0), log


def test_a_job_that_is_being_cancelled_is_not_brought_back(job: FakeJob) -> None:
    """Its steps may be gone before its script hears of it."""
    process = job.start(RANKS_DO=f"echo COMPLETING >$FAKE/state; {TERMINATED}")
    wait_until(lambda: job.state == "COMPLETING", "it ends")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, job.requeues) == (143, 0), log
    # the step that already runs is told, because such a job can start no more
    assert (job.folder / "run" / "verdict").read_text() == "KILLED\n"


@pytest.mark.parametrize(
    ("given", "code", "asked"),
    [
        ({"REFUSALS": "3"}, 0, 4),  # Slurm's controller was away
        ({"REFUSALS": "99"}, 85, 6),
        ({"REFUSALS": "99", "REQUEUE": "0"}, 85, 1),  # sbatch --no-requeue
    ],
)
def test_a_requeue_that_fails_is_tried_again(
    job: FakeJob, given: dict[str, str], code: int, asked: int
) -> None:
    got, log = job.run(RANKS_DO="exit 85", **given)
    assert (got, job.requeues) == (code, asked), log
    assert ("aent: not requeued" in log) == (code == 85)


@pytest.mark.parametrize(
    ("array", "requeued"),
    [
        ({}, "1234"),
        ({"SLURM_ARRAY_JOB_ID": "1230", "SLURM_ARRAY_TASK_ID": "2"}, "1234"),
        # the task that an array starts last: by 1234, Slurm would requeue every task
        ({"SLURM_ARRAY_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "3"}, "1234_3"),
    ],
)
def test_a_task_of_an_array_is_requeued_alone(
    job: FakeJob, array: dict[str, str], requeued: str
) -> None:
    code, log = job.run(RANKS_DO="exit 85", **array)
    assert code == 0, log
    assert (job.folder / "requeues").read_text() == f"requeue {requeued}\n"


def test_the_end_of_the_job_is_read_in_any_format_of_times(job: FakeJob) -> None:
    """Ranks that do not come to a boundary in time are ended, whatever SLURM_TIME_FORMAT says."""
    (job.folder / "end").write_text("1999-01-01T00:00:00\n")
    beats = "touch $RUN_DIR/heartbeats/rank{0,1,2,3}.json"
    ranks = (
        f"{beats}; trap '' USR1; sleep 600 & trap 'kill $!; exit 137' TERM; touch $FAKE/began; wait"
    )
    process = job.start(RANKS_DO=f"{ranks}; wait", SLURM_TIME_FORMAT="relative")
    wait_until((job.folder / "began").exists, "the step has begun")
    process.send_signal(signal.SIGUSR1)
    log, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, job.requeues) == (0, 1), log


def test_ranks_may_end_their_step_where_slurm_does_not_tell_the_end_of_the_job(
    job: FakeJob,
) -> None:
    (job.folder / "end").write_text("")
    beats = "touch $RUN_DIR/heartbeats/rank{0,1,2,3}.json"
    ranks = f"{beats}; trap 'asked=1' USR1; trap 'exit 143' TERM; touch $FAKE/began"
    save = "[ -z $asked ] || { sleep 1; touch $FAKE/saved; exit 85; }"
    process = job.start(RANKS_DO=f"{ranks}; while sleep .1; do {save}; done")
    wait_until((job.folder / "began").exists, "the step has begun")
    process.send_signal(signal.SIGUSR1)
    log, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, job.requeues) == (0, 1), log
    assert (job.folder / "saved").exists()


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_steps_in_containers(job: FakeJob, kind: str) -> None:
    settings = job.folder / "cluster.env"
    settings.write_text("export NCCL_SOCKET_IFNAME=ib0\n#export NCCL_DEBUG=INFO\n")
    image = job.folder / "trainer.sqsh"
    image.write_bytes(b"an image")
    digest = "sha256:" + hashlib.sha256(b"an image").hexdigest()
    engines = f"registry#engines@{digest}"
    images = {"IMAGE": str(image), "ENGINE_IMAGE": engines, "MOUNTS": "/data:/data"}
    code, log = job.run(
        CONTAINER=kind, CLUSTER_ENV=str(settings), SLURM_GPUS_PER_NODE="4", **images
    )
    assert code == 0, log
    names = {}
    for step, where in (("prepare", str(image)), ("rank", str(image)), ("serve", engines)):
        flags, command, seen = job.step(step)
        mounts = f"/data:/data,{job.folder}:{job.folder}"
        cache = job.folder / ".cache"  # beside the run, on a file system that all nodes see
        assert (seen["PYTHONNOUSERSITE"], seen["XDG_CACHE_HOME"]) == ("1", str(cache))
        assert seen["TORCHINDUCTOR_CACHE_DIR"] == f"{cache}/torchinductor"
        assert seen["XDG_CONFIG_HOME"] == f"{cache}/config"  # home may be read-only
        if kind == "apptainer":
            flag = f"apptainer exec --pwd {job.folder} --bind {mounts} --nv {where} true -m aent."
            assert command.startswith(flag)
            continue
        given = dict(flag.split("=", 1) for flag in flags if flag.startswith("--container"))
        names[step] = given.pop("--container-name")
        ours = set(given.pop("--container-env").split(","))
        assert {"MASTER_PORT", "NCCL_SOCKET_IFNAME", "PYTHONNOUSERSITE", "XDG_CACHE_HOME"} <= ours
        assert {"TORCHINDUCTOR_CACHE_DIR", "XDG_CONFIG_HOME"} <= ours
        assert ("HF_HUB_OFFLINE" in ours) == (step != "prepare")
        assert "NCCL_DEBUG" not in ours
        assert given == {
            "--container-image": where,
            "--container-workdir": str(job.folder),
            "--container-mounts": mounts,
        }
    told = {k: v for k, v in job.step("rank")[2].items() if k.startswith("AENT_")}
    assert told.pop("AENT_IMAGE") == str(job.folder / "trainer.sqsh")
    assert told.pop("AENT_ENGINE_IMAGE") == engines
    assert told == {"AENT_IMAGE_DIGEST": digest, "AENT_ENGINE_IMAGE_DIGEST": digest}
    if kind == "pyxis":  # an image is unpacked once on each node
        assert names["prepare"] == names["rank"] != names["serve"]
        # on all of them before any node waits for the others
        unpacked, met = (job.folder / "steps" / step for step in ("true", "preflight"))
        assert unpacked.stat().st_mtime_ns < met.stat().st_mtime_ns
        flags, command, _ = job.step("true")
        assert command == "true"
        assert {f"--container-name={names['rank']}", "--ntasks-per-node=1"} <= set(flags)


def test_an_image_whose_digest_cannot_be_kept_costs_no_job(job: FakeJob) -> None:
    image = job.folder / "trainer.sif"
    image.write_bytes(b"an image")
    settings = {"CONTAINER": "apptainer", "IMAGE": str(image), "ENGINE_IMAGE": "docker://engines"}
    code, log = job.run(**settings, CACHE="/proc/cache")
    assert code == 0, log
    assert "/proc/cache" in log
    seen = job.step("rank")[2]
    assert (seen["AENT_IMAGE_DIGEST"], seen["AENT_ENGINE_IMAGE_DIGEST"]) == ("", "")
