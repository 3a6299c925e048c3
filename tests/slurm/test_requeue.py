"""Jobs that are asked to end, lose a node, or hang: they continue, or report why not."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from aent.inference import registry
from aent.launch import starts
from aent.models.model_source import resolve
from aent.recipe.schema import ModelSection
from aent.runtime import node_metrics
from aent.slurm import hashes
from slurm.conftest import PATIENT, ROOT, TINY, TWO_NODES
from wording import assert_names

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS = 4  # of the undisturbed run, with which the others are compared
LONG = ("steps=60", "task.heldout=0", "checkpoint.every=1", PATIENT)


def assert_same_curve(job, reference):
    got, want = job.curve(STEPS), reference.curve(STEPS)
    for key, values in want.items():
        assert got[key] == pytest.approx(values, rel=1e-4, abs=1e-6), key


def test_asked_to_end_a_job_of_two_groups_is_requeued_and_a_stopped_rank_ends_it(
    cluster, submit, tmp_path, sweep, monkeypatch
):
    monkeypatch.setenv("SILENCE", "60")
    two_groups = ("cluster.nodes=2", "cluster.engine_nodes=1", "cluster.gpus_per_node=0")
    job = submit("aent", TINY, *LONG, *two_groups)
    job.wait_for("step  2/60")
    nodes = cluster.run("squeue", "--noheader", "--format=%i %N").stdout.split("\n")
    assert [line for line in nodes if line] == [
        f"{job.number}+0 node[0-1]",
        f"{job.number}+1 node2",
    ]
    engine = json.loads((job.run_dir / "engines" / "0.json").read_text())
    assert engine["url"].startswith(f"http://{cluster.address(2)}:")
    status = [sys.executable, "-m", "aent", "status", TINY]
    shown = cluster.run(*status, cwd=tmp_path).stdout
    assert f"{job.number}+0" in shown
    assert str(job.run_dir) in shown

    run_id = job.mlflow()[1].info.run_id
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for("aent: requeued")
    job.wait_for("aent: resumes after")
    steps = int(job.log.split("aent: resumes after ")[1].split()[0])
    job.wait_for(f"step {steps + 4:2}/60")  # so the start has been recorded
    assert_names(starts.noted(job.run_dir)[1]["after"], job.number, "asked to end")
    assert not (job.run_dir / hashes.FOLDER).exists()  # prepare has read what the nodes hashed
    assert_same_curve(job, sweep[0])

    def machines() -> set[str]:
        return {file.stem for file in (job.run_dir / node_metrics.FOLDER).glob("*.json")}

    job.wait_until(lambda: len(machines()) == 3, "every machine was sampled")  # every 10 s
    assert machines() == {"node0", "node1", "node2"}

    stopped = job.tasks("aent.launch.rank")[3]
    stopped.send_signal(signal.SIGSTOP)
    assert job.wait() == "FAILED", job.log
    assert re.search(r"aent: rank 3 .*\d+ s\b.*\bstep \d+", job.log)
    assert re.search(r"\brank 0 .*\bstep \d+", job.log)
    stacks = (job.run_dir / "logs" / "rank0.log").read_text()
    assert "most recent call first" in stacks
    assert job.status() == "FAILED"
    assert job.mlflow()[1].info.run_id == run_id


@pytest.fixture
def in_containers(tmp_path, monkeypatch):
    """Jobs run by ``apptainer.sh``: home and /tmp are empty except for mounts."""
    (tmp_path / "apptainer").symlink_to(Path(__file__).with_name("apptainer.sh"))
    (tmp_path / "image.sif").write_bytes(b"an image")
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"  # torch's default
    compiled.mkdir(exist_ok=True)
    places = (ROOT, sys.prefix, sys.base_prefix, compiled)
    own = dict.fromkeys(str(Path(place).resolve()) for place in places)
    settings = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CONTAINER": "apptainer",
        "IMAGE": str(tmp_path / "image.sif"),
        "ENGINE_IMAGE": str(tmp_path / "image.sif"),
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
        "MOUNTS": ",".join(f"{path}:{path}" for path in own),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_a_lost_node_costs_one_step_at_most(cluster, submit, sweep, tmp_path, in_containers):
    """In containers, with a model by its path from the folder that the job is sent from."""
    shutil.copytree(resolve(ModelSection(bundled="tiny-qwen2")), tmp_path / "model")
    job = submit(*TWO_NODES, *LONG, "model.bundled=null", "model.path=model")
    job.wait_for("step  2/60")
    token = registry.read_token(job.run_dir / "token")
    logs = [job.log, *(p.read_text() for p in (job.run_dir / "logs").iterdir())]
    assert len(logs) == 1 + 4 + 2  # the job's, the ranks', the engine's and its task's
    assert not any(token in text for text in logs)
    assert token not in str(job.mlflow()[1].data)
    assert token not in cluster.run("scontrol", "show", "job", job.number).stdout
    cluster.power_off(1)
    try:
        job.wait_for("aent: resumes after")
        assert "node1" not in cluster.show(job.number)["NodeList"]
        job.wait_for("step  5/60")
        assert_same_curve(job, sweep[0])
    finally:
        cluster.power_on(1)
    job.cancel()
    assert job.status() == "KILLED"
    run = job.mlflow()[1]
    digest = hashlib.sha256(b"an image").hexdigest()
    assert run.data.tags["aent.image"] == str(tmp_path / "image.sif")
    assert run.data.tags["aent.engine_image_digest"] == f"sha256:{digest}"
