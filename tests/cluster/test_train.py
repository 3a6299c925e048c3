"""``slurm/train.sbatch`` on a real cluster: ranks over nodes, preflight, failures."""

from __future__ import annotations

import json

import pytest

from aent.rollout import registry
from cluster.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TRAIN = str(ROOT / "slurm" / "train.sbatch")
TINY = "recipes/cpu/tiny.yaml"
TWO_NODES = ("--nodes=2", "--gpus-per-node=0", TRAIN, TINY)


def test_ranks_over_two_nodes_and_an_engine_train_together(cluster, submit):
    job = submit(*TWO_NODES, "steps=2")
    assert job.wait() == "COMPLETED", job.log
    cluster.wait_until_idle()  # every node is released
    assert "step 2/2" in job.log
    client, run = job.mlflow()
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.tensor_parallel"] == "2"
    gaps = client.get_metric_history(run.info.run_id, "policy/logprob_gap")
    assert len(gaps) == 2
    assert max(point.value for point in gaps) < 1e-3
    engine = json.loads((job.run_dir / "engines" / "0.json").read_text())
    assert engine["url"].startswith(f"http://{cluster.address(0)}:")
    token = registry.read_token(job.run_dir / "token")
    logs = [job.log, *(p.read_text() for p in (job.run_dir / "logs").iterdir())]
    assert len(logs) == 1 + 4 + 2  # the job's, the ranks', the engine's and its task's
    assert not any(token in text for text in logs)
    assert token not in str(run.data) + cluster.run("scontrol", "show", "job", job.number).stdout


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
    job = submit("--nodes=1", "--gpus-per-node=4", TRAIN, TINY)
    assert job.wait() == "FAILED"
    reason = "4 trainer ranks and 1 engine(s) of rollout.engine.tensor_parallel=1 need 5 GPUs"
    assert reason in job.log
    assert not job.run_dir.exists()


def test_a_failing_rank_ends_the_job_and_the_log_ends_with_why(submit):
    job = submit(*TWO_NODES, "task.heldout=0", "rollout.max_logprob_gap=1e-12")
    assert job.wait() == "FAILED"
    assert "failed first" in job.log
    assert job.log.rstrip().endswith("sample from the policy that is being trained")
    assert job.mlflow()[1].info.status == "FAILED"
