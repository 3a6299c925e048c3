"""``slurm/train.sbatch`` on a real cluster: ranks over nodes, preflight, failures."""

from __future__ import annotations

import shutil
import sys

import pytest

from aent.model_source import resolve
from aent.recipe.schema import ModelSection
from cluster.conftest import SLURM, TINY, TWO_NODES
from cluster.jobs import Job

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_preflight_names_the_bad_node_before_anything_loads(cluster, submit):
    cluster.on_node(1, "mount", "-o", "remount,size=1m", "/dev/shm")
    try:
        job = submit(*TWO_NODES)
        assert job.wait() == "FAILED"
    finally:
        cluster.on_node(1, "mount", "-o", "remount,size=2g", "/dev/shm")
    assert "preflight: node1: /dev/shm has 0.00 GiB free, 0.5 are needed" in job.log
    assert "preflight: node0" not in job.log
    assert not (job.run_dir / "engines").exists()


def test_a_job_that_cannot_fit_is_refused_with_the_reason(submit):
    job = submit("--nodes=1", "--gpus-per-node=4", str(SLURM / "train.sbatch"), TINY)
    assert job.wait() == "FAILED"
    reason = "4 trainer ranks and 1 engine(s) of rollout.engine.tensor_parallel=1 need 5 GPUs"
    assert reason in job.log
    assert not job.run_dir.exists()


def test_a_chain_of_jobs_for_one_run_and_the_log_ends_with_why_it_failed(
    cluster, submit, tmp_path, monkeypatch
):
    """The links fail fast, by a model whose weights are cut off; one waits for the other."""
    model = tmp_path / "model"
    shutil.copytree(resolve(ModelSection(bundled="tiny-qwen2")), model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "run"))
    recipe = ("model.bundled=null", f"model.path={model}", "rollout.engines=0")
    recipe += ("rollout.urls=[http://127.0.0.1:9]",)
    sent = cluster.run(str(SLURM / "chain.sh"), "2", *TWO_NODES, *recipe, cwd=tmp_path).stdout
    numbers = sent.split()
    assert len(numbers) == 2
    assert f"afterany:{numbers[0]}" in cluster.show(numbers[1])["Dependency"]
    for number in numbers:
        job = Job(cluster, number, tmp_path / "run", tmp_path / f"aent-{number}.log")
        assert job.wait() == "FAILED"
        assert "failed first" in job.log
        assert "safetensor" in job.log.rstrip().splitlines()[-1].lower()
