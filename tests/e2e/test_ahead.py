"""``rollout.max_staleness: 1``: sampled ahead, through updates of the weights, killed and resumed,
and the same run given the same rollouts."""

from __future__ import annotations

import json
import signal

import pytest

from aent.checkpoint import rollout_files
from aent.runtime.signals import CHECKPOINTED
from e2e.compare import assert_same_run, replay
from e2e.jobs import Job
from processes import assert_gone

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(3600)]

STEPS = 5
RUN = (
    f"steps={STEPS}", "task.heldout=0", "checkpoint.every=2", "checkpoint.keep=9",
    "rollout.max_staleness=1", "algorithm.importance=truncated_token",
    "trainer.tensor_parallel=1", "trainer.pipeline_parallel=1",
    # one response after the other: an update comes in the middle of a step
    "rollout.concurrency=1", "rollout.max_response_tokens=48",
)  # fmt: skip


def test_a_run_that_samples_ahead_is_exact_given_its_rollouts(shared_engine, tmp_path):
    job = Job(tmp_path, *RUN, *shared_engine)
    try:
        job.wait_for(f"step 1/{STEPS}")
        job.process.send_signal(signal.SIGUSR1)  # does not wait for responses in flight
        assert job.wait() == CHECKPOINTED, job.text
        assert_gone(job.survivors())
        job = Job(tmp_path, *RUN, *shared_engine, "resume=auto")
        job.wait_for(f"step 3/{STEPS}")
        job.process.kill()
        assert_gone(job.survivors(), within_s=60)
        job = Job(tmp_path, *RUN, *shared_engine, "resume=auto")
        assert job.wait() == 0, job.text
        assert "resumes after" in job.text
    finally:
        job.process.kill()
    parts, behind = job.run_dir, {}
    for step in range(STEPS):
        samples = rollout_files.read(parts, step).samples
        versions = [version for sample in samples for version in sample.versions]
        assert set(versions) <= {max(0, step - 1), step}
        behind[step] = step - sum(versions) / len(versions)
        for sample in samples:  # a later token is not of older weights
            assert sample.versions == sorted(sample.versions)
    assert behind[0] == 0
    # begun with the weights of the step before, gone on with those of the step
    assert any(0 < behind[step] < 1 for step in behind)
    whole = replay(tmp_path, "whole", *RUN, *shared_engine)
    assert_same_run(whole, parts, STEPS)
    lines = [json.loads(line) for line in (whole / "journal.jsonl").read_text().splitlines()]
    values = {(p.get("key"), p.get("step")): p.get("value") for p in lines}
    for step in range(STEPS):
        assert values["staleness/mean", step] == pytest.approx(behind[step])
        if behind[step] < 1:  # tokens of the trainer's own weights
            assert values["policy/logprob_gap", step] < 1e-3
        else:
            assert ("policy/logprob_gap", step) not in values
