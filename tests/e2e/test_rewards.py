"""Rewards of one's own, as docs/rewards.md has them."""

from __future__ import annotations

import json
import shutil

import pytest

from aent.checkpoint import rollout_files
from e2e.jobs import Job

pytestmark = pytest.mark.slow

STEPS = 2


def test_three_graders_and_their_parts(shared_engine, tmp_path):
    """Every response has a grade of each, the sum is learnt from, and both are recorded."""
    job = Job(
        tmp_path, f"steps={STEPS}", "checkpoint.every=9", *shared_engine,
        recipe="recipes/rewards/own.yaml",
    )  # fmt: skip
    assert job.wait() == 0, job.text
    points = [json.loads(line) for line in (job.run_dir / "journal.jsonl").open()]
    for step in range(STEPS):
        rollout = rollout_files.read(job.run_dir, step)
        number, different, last = zip(*(v.grades for v in rollout.verdicts), strict=True)
        for sample, *grades in zip(rollout.samples, number, different, last):
            first, second, third = (grade.reward for grade in grades)
            assert sample.reward == pytest.approx(first + 0.1 * second + 0.5 * third)
        for group in range(4):
            texts = [t for t, s in zip(rollout.responses, rollout.samples) if s.group == group]
            unlike = [g.reward for g, s in zip(different, rollout.samples) if s.group == group]
            assert unlike == [float(texts.count(text) == 1) for text in texts]
        found = {p["key"]: p["value"] for p in points if p.get("step") == step and "key" in p}
        digits = [grade.parts["digits"] for grade in number]
        assert found["grader/number/part/digits"] == pytest.approx(sum(digits) / len(digits))
        assert found["grader/last_number/errors"] == found["reward/judge_errors"] == 0
        assert 0 <= found["grader/different/mean"] <= 1
    hashed = json.loads((job.run_dir / "start.json").read_text())["graders"]
    assert set(hashed) == {f"recipes/rewards/rewards.py:{f}" for f in ("reward", "different")}


@pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="there is no bwrap (Debian's package bubblewrap)"
)
def test_programs_with_hidden_tests(shared_engine, tmp_path):
    """Programs are run in the sandbox, none of a random model's is right, and none is an error."""
    job = Job(
        tmp_path, f"steps={STEPS}", "checkpoint.every=9", *shared_engine,
        "rollout.samples_per_prompt=2", "task.heldout=2",
        recipe="recipes/rewards/code.yaml",
    )  # fmt: skip
    assert job.wait() == 0, job.text
    assert "1 x code (sandbox: bubblewrap)" in job.text
    points = [json.loads(line) for line in (job.run_dir / "journal.jsonl").open()]
    for step in range(STEPS):
        rollout = rollout_files.read(job.run_dir, step)
        code, syntax = zip(*(v.grades for v in rollout.verdicts), strict=True)
        for sample, ran, form in zip(rollout.samples, code, syntax):
            assert (ran.reward, ran.error) == (0, "")
            assert ran.seconds > 0.001  # a process was started
            assert sample.reward == pytest.approx(0.1 * form.reward)
        found = {p["key"]: p["value"] for p in points if p.get("step") == step and "key" in p}
        assert found["grader/code/errors"] == found["grader/code/right_share"] == 0
        assert found["time/grader/code"] == pytest.approx(sum(g.seconds for g in code))
