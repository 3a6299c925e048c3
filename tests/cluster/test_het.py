"""Engines in a group of nodes of their own, in a job that ``aent slurm`` has rendered."""

from __future__ import annotations

import json
import sys

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TINY = "recipes/cpu/tiny.yaml"


def test_trainers_and_engines_in_groups_of_their_own(cluster, submit, tmp_path):
    two_groups = ("cluster.nodes=2", "cluster.engine_nodes=1", "cluster.gpus_per_node=0")
    job = submit("aent", TINY, "steps=2", "task.heldout=0", *two_groups)
    job.wait_for("step 1/2")
    nodes = cluster.run("squeue", "--noheader", "--format=%i %N").stdout.split("\n")
    assert [line for line in nodes if line] == [
        f"{job.number}+0 node[0-1]",
        f"{job.number}+1 node2",
    ]
    status = [sys.executable, "-m", "aent.cli", "slurm", "status", TINY]
    shown = cluster.run(*status, cwd=tmp_path).stdout
    assert f"{job.number}+0" in shown
    assert str(job.run_dir) in shown
    assert job.wait() == "COMPLETED", job.log
    assert "step 2/2" in job.log
    assert job.run_dir.with_suffix(".sbatch").read_text().startswith("#!/bin/bash\n# aent slurm")
    engine = json.loads((job.run_dir / "engines" / "0.json").read_text())
    assert engine["url"].startswith(f"http://{cluster.address(2)}:")
    assert job.mlflow()[1].info.status == "FINISHED"
