"""``slurm/train.sbatch`` on a real cluster: ranks over nodes, preflight, failures."""

from __future__ import annotations

import math
import re
import shutil
from itertools import pairwise

import pytest
from safetensors.torch import load_file, save_file

from aent.models.model_source import resolve
from aent.recipe.schema import ModelSection
from aent.runtime.environment import data_path
from slurm.conftest import LIGHT, SLURM, TINY, TWO_NODES, clean_environment
from slurm.jobs import Job
from wording import assert_names

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_preflight_names_the_bad_node_before_anything_loads(cluster, submit):
    cluster.on_node(1, "mount", "-o", "remount,size=1m", "/dev/shm")
    try:
        job = submit(*TWO_NODES)
        assert job.wait() == "FAILED"
    finally:
        cluster.on_node(1, "mount", "-o", "remount,size=2g", "/dev/shm")
    assert re.search(r"preflight: node1: /dev/shm .*\b0\.00 GiB.*\b0\.5\b", job.log)
    assert "preflight: node0" not in job.log
    assert job.status() == "FAILED"
    assert not (job.run_dir / "engines").exists()


SHARED = ("--gpus-per-node=0", "--exclusive=user", "--ntasks-per-node=1", "--cpus-per-task=3")


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--gpus-per-node=4",), "rollout.engine.tensor_parallel=1 5 GPUs"),
        (SHARED, "4 rank 3 --cpus-per-task=4"),
    ],
)
def test_a_job_that_cannot_fit_is_refused_with_the_reason(submit, flags, names):
    job = submit("--nodes=1", *flags, str(SLURM / "train.sbatch"), TINY)
    assert job.wait() == "FAILED"
    assert_names(job.log, *names.split())
    assert not job.run_dir.exists()


def test_a_log_ends_with_why_the_job_failed(submit, tmp_path):
    """With a weight that is not finite, which a rank finds. The recipe is in the folder that the
    job is submitted from."""
    shutil.copy(data_path(TINY), tmp_path / "own.yaml")
    model = tmp_path / "model"
    shutil.copytree(resolve(ModelSection(bundled="tiny-qwen2")), model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    recipe = ("own.yaml", "model.bundled=null", f"model.path={model}", "rollout.engines=0")
    recipe += ("trainer.tensor_parallel=1",)  # a rank on each node
    job = submit(*TWO_NODES[:-1], *recipe, "rollout.urls=[http://127.0.0.1:9]")
    assert job.wait() == "FAILED"
    assert re.search(r"\] aent: rank \d", job.log)
    assert "model.norm.weight" in job.log.rstrip().splitlines()[-1]


def test_a_chain_of_jobs_goes_on_where_the_last_one_had_no_time_to_save(
    cluster, tmp_path, monkeypatch
):
    """And may not be requeued: the newest checkpoint serves the next link."""
    clean_environment(monkeypatch)
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("SAVE_MARGIN", "7200")  # as if the end were nearer than a step is long
    flags = ("--no-requeue", "--time=60", "--gpus-per-node=0", str(SLURM / "train.sbatch"), TINY)
    steps = "steps=20"  # not done before the signal comes
    chain = (str(SLURM / "chain.sh"), "3", *flags, steps, *LIGHT)
    numbers = cluster.run(*chain, cwd=tmp_path).stdout.split()
    links = [Job(cluster, n, tmp_path / "run", tmp_path / f"aent-{n}.log") for n in numbers]
    for before, link in pairwise(links):
        assert f"afterany:{before.number}" in cluster.show(link.number)["Dependency"]
    links[0].wait_for("step  2/20")
    cluster.run("scancel", "--batch", "--signal=USR1", links[0].number)
    assert links[0].wait() == "FAILED", links[0].log
    run_id = links[0].mlflow()[1].info.run_id
    assert "aent: not requeued" in links[0].log
    assert links[1].wait() == "COMPLETED", links[1].log
    assert "aent: resumes after" in links[1].log
    links[1].curve(20)  # every step is there
    assert links[1].mlflow()[1].info.run_id == run_id
    assert links[1].status() == "FINISHED"
    assert links[2].wait() == "COMPLETED"
    assert f"aent: the run in {tmp_path}/run is finished" in links[2].log
