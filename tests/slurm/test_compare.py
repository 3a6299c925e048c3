"""``aent compare --slurm``: a job array whose tasks are the runs of a comparison."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from aent.compare import collect
from slurm.conftest import PATIENT, TINY, clean_environment
from slurm.jobs import Job
from wording import assert_names

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]

CONSTANT = """
base: {tiny}
change:
  name: constant
  controller: {{kind: constant, initial: .02}}
"""
SMALL = ("steps=2", "task.heldout=0", "trainer.tensor_parallel=1", "trainer.pipeline_parallel=1",
         "cluster.gpus_per_node=0", PATIENT)  # fmt: skip


def test_an_array_runs_every_arm_once(cluster, tmp_path, monkeypatch):
    clean_environment(monkeypatch)
    tiny = Path(TINY).resolve()
    (tmp_path / "constant.yaml").write_text(CONSTANT.format(tiny=tiny))
    arms = (str(tiny), "constant.yaml")
    command = (sys.executable, "-m", "aent", "compare", *arms, *SMALL, "--seeds", "1")
    command += ("--out", "all runs", "--slurm")
    folder = tmp_path / "all runs"
    sent = cluster.run(*command, cwd=tmp_path).stdout
    array = re.fullmatch(rf"job (\d+): {folder}/array.sbatch\n", sent).group(1)
    again = cluster.run(*command, cwd=tmp_path).stdout.splitlines()  # submits nothing
    for task, (arm, line) in enumerate(zip(("tiny", "constant"), again, strict=True)):
        assert_names(line, f"job {array}_{task}", f"{folder}/{arm}-seed0")
    told = cluster.run(sys.executable, "-m", "aent", "status", f"{array}_1").stdout
    assert f"{folder}/constant-seed0" in told
    for task, arm in enumerate(("tiny", "constant")):
        log = folder / f"task-{array}_{task}.log"
        job = Job(cluster, f"{array}_{task}", folder / f"{arm}-seed0", log)
        assert job.wait() == "COMPLETED", job.log
    found = collect.read(str(folder))
    assert sorted(run.arm for run in found.runs) == ["constant", "tiny"]
    assert found.left_out == []
    assert "array.sbatch" not in cluster.run(*command, cwd=tmp_path).stdout  # nothing is left to do
