"""``rollout.max_staleness: 1``: sampled ahead, killed and resumed, and the same run given the same
rollouts."""

from __future__ import annotations

import json
import shutil

import pytest

from aent.checkpoint import rollout_files
from e2e.compare import assert_same_run
from e2e.jobs import Job
from processes import assert_gone

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(3600)]

STEPS = 5
RUN = (
    f"steps={STEPS}", "task.heldout=0", "checkpoint.every=1", "checkpoint.keep=9",
    "rollout.max_staleness=1", "algorithm.importance=truncated_token",
    "trainer.tensor_parallel=1", "trainer.pipeline_parallel=1",
)  # fmt: skip


def test_a_run_that_samples_ahead_is_exact_given_its_rollouts(shared_engine, tmp_path):
    folders = [tmp_path / name for name in ("parts", "whole")]
    for folder in folders:
        folder.mkdir()
    job = Job(folders[0], *RUN, *shared_engine)
    try:
        job.wait_for(f"step 2/{STEPS}")
        job.process.kill()
        assert_gone(job.survivors(), within_s=60)
        job = Job(folders[0], *RUN, *shared_engine, "resume=auto")
        assert job.wait() == 0, job.text
        assert "resumes after" in job.text
        parts = job.run_dir
        written_by = {}
        for step in range(STEPS):
            rollout = rollout_files.read(parts, step)
            (written_by[step],) = {v for sample in rollout.samples for v in sample.versions}
        # the update before; the present weights where nothing was sampled ahead
        assert written_by[0] == 0
        assert all(written_by[step] in (step - 1, step) for step in range(1, STEPS))
        assert written_by[STEPS - 1] == STEPS - 2

        whole = folders[1] / "run"
        for name in ("rollouts", "checkpoints/step_000000"):
            shutil.copytree(parts / name, whole / name)
        shutil.copy(parts / "recipe.yaml", whole)
        job = Job(folders[1], *RUN, *shared_engine, "resume=auto")
        assert job.wait() == 0, job.text
    finally:
        job.process.kill()
    assert_same_run(whole, parts, STEPS)
    lines = [json.loads(line) for line in (whole / "journal.jsonl").read_text().splitlines()]
    stale = {p["step"]: p["value"] for p in lines if p.get("key") == "staleness/mean"}
    assert stale == {step: float(step - written_by[step]) for step in range(STEPS)}
    gaps = [p["value"] for p in lines if p.get("key") == "policy/logprob_gap"]
    assert gaps
    assert max(gaps) < 1e-3
