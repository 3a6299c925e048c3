"""A job array over overrides: each task its own run, all below one in MLflow."""

from __future__ import annotations

import fcntl

import pytest

from aent.recipe.load import load
from aent.slurm import sweep as sweeps
from slurm.conftest import TINY


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


def test_a_job_that_hangs_while_it_makes_the_run_above_is_told_by_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "LOCK_S", 0.5)
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            sweeps.SweepError, match=r"/lock: another process has held it for 0\.5 s"
        ):
            sweeps.parent_run(tmp_path, load(TINY))
