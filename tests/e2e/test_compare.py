"""``aent compare``, stopped in its second run and started again, then ``aent report``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from e2e.jobs import PATIENCE_S
from wording import assert_names

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(3600)]  # three starts

STEPS = 3
SMALL = (f"steps={STEPS}", "task.heldout=3", "evaluation.samples=2", "evaluation.temperature=1",
         "checkpoint.every=1", "trainer.tensor_parallel=1", "trainer.pipeline_parallel=1",
         "trainer.mini_batches=1", f"rollout.engine.start_timeout_s={PATIENCE_S}")  # fmt: skip
CONSTANT = """
base: {tiny}
change:
  name: constant
  controller: {{kind: constant, initial: .02}}
"""


def start(folder: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    tiny = Path("recipes/cpu/tiny.yaml").resolve()
    (folder / "constant.yaml").write_text(CONSTANT.format(tiny=tiny))
    command = [
        sys.executable,
        "-m",
        "aent",
        "compare",
        str(tiny),
        str(folder / "constant.yaml"),
    ]
    command += [*SMALL, "--seeds", "1", "--out", str(folder / "runs"), *options]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=inherited)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The folder, what was printed before and after the interruption, and the first engine of each
    run."""
    folder = tmp_path_factory.mktemp("comparison")
    first, second = folder / "first.log", folder / "second.log"
    process = start(folder, first)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "step 1/3" not in first.read_text().partition("run 2 of 2")[2]:
            assert process.poll() is None, first.read_text()
            assert time.monotonic() < deadline, first.read_text()
            time.sleep(0.1)
        engines = [
            json.loads((folder / "runs" / f"{arm}-seed0" / "engines" / "0.json").read_text())
            for arm in ("tiny", "constant")
        ]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM, first.read_text()
        process = start(folder, second)
        assert process.wait(PATIENCE_S) == 0, second.read_text()
    finally:
        process.kill()
    return folder, first.read_text(), second.read_text(), engines


def test_started_again_it_goes_on_where_it_was(outputs):
    folder, first, second, _ = outputs
    assert first.count("constant, seed 0") == 2  # it begins and is stopped
    assert_names(second, "1 of 2")
    assert "run 2 of 2: constant, seed 0" in second
    assert "aent: resumes after" in second
    assert "run 1 of 2" not in second
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    parents = set()
    for arm in ("tiny", "constant"):
        run = client.get_run(
            (folder / "runs" / f"{arm}-seed0" / "mlflow_run_id").read_text().strip()
        )
        assert run.info.status == "FINISHED"
        parents.add(run.data.tags["mlflow.parentRunId"])
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "reward/mean")]
        assert sorted(steps) == list(range(STEPS))
    assert parents == {(folder / "runs" / "mlflow_run_id").read_text().strip()}


def test_runs_share_an_engine_until_one_does_not_end_well(outputs):
    folder, _, _, engines = outputs
    assert engines[0] == engines[1]
    again = json.loads((folder / "runs" / "constant-seed0" / "engines" / "0.json").read_text())
    assert again["url"] != engines[0]["url"]
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in str(p.info)]
    assert left == []


def test_the_report_has_what_the_runs_recorded(outputs):
    folder, _, _, _ = outputs
    command = [
        sys.executable,
        "-m",
        "aent",
        "report",
        str(folder / "runs"),
        "--reward",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    page = (folder / "runs" / "report.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    curves = data["charts"]["coefficient"]["curves"]
    assert curves["constant"]["mean"] == pytest.approx([0.02] * STEPS)
    assert curves["tiny"]["mean"][0] == pytest.approx(0.01)
    assert set(data["charts"]["pass_at_k"]["curves"]["tiny"]["x"]) == {1, 2}
    assert set(data["charts"]["heldout"]["curves"]["tiny"]["x"]) == {0, STEPS}


def test_another_recipe_does_not_go_on_in_these_runs(outputs):
    folder, _, _, _ = outputs
    process = start(folder, folder / "third.log", "trainer.optimizer.lr=1")
    assert process.wait(PATIENCE_S) == 2
    said = (folder / "third.log").read_text()
    assert_names(said, "trainer.optimizer.lr", 0.001, 1.0, "--out")
