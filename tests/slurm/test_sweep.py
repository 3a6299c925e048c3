"""A job array over overrides: each task its own run, all below one in MLflow."""

from __future__ import annotations

import fcntl
import os
import subprocess

import pytest

from aent.recipe.load import load
from aent.slurm import sweep as sweeps
from slurm.conftest import SLURM, TINY
from wording import naming


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_task_takes_its_line_and_mlflow_shows_them_together(sweep):
    plain, constant = sweep
    runs = [job.mlflow()[1] for job in sweep]
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert len(parents) == 1
    client, _ = plain.mlflow()
    assert client.get_run(parents.pop()).info.status == "FINISHED"
    assert runs[1].data.params["controller.kind"] == "constant"
    assert constant.curve(4)["controller/coefficient"] == [0.02] * 4
    assert plain.curve(4)["controller/coefficient"][-1] != 0.02


@pytest.fixture
def task(tmp_path):
    """Runs one task of sweep.sbatch, with a script that prints its arguments for train.sbatch."""
    (tmp_path / "train").write_text("printf '<%s>' \"$@\"")
    (tmp_path / "scontrol").write_text("#!/bin/sh\n")
    (tmp_path / "scontrol").chmod(0o755)

    def run(line: str) -> subprocess.CompletedProcess[str]:
        variants = tmp_path / "variants.txt"
        variants.write_text(f"first=1\n{line}\n")
        job = {"JOB_ID": "7", "JOB_NAME": "s", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "1"}
        env = {f"SLURM_{name}": value for name, value in job.items()} | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TRAIN": str(tmp_path / "train"),
        }
        command = ["bash", str(SLURM / "sweep.sbatch"), "r.yaml", str(variants), "steps=2"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    return run


def test_a_task_gets_its_lines_words_or_nothing(task):
    done = task("a=1 'b=[1, 2]' c=\"d e\"")
    assert (done.returncode, done.stdout) == (0, "<r.yaml><steps=2><a=1><b=[1, 2]><c=d e>")
    done = task("a=1 'b=[1, 2] c=2")  # never with the words before the quote alone
    assert (done.returncode, done.stdout) == (2, "")
    assert "variants.txt: line 2" in done.stderr


def test_a_job_that_hangs_while_it_makes_the_run_above_is_told_by_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "LOCK_S", 0.5)
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(sweeps.SweepError, match=naming(tmp_path / "lock", "0.5 s")):
            sweeps.parent_run(tmp_path, load(TINY))
