"""A job array over overrides: each task its own run, all below one in MLflow."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]


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
