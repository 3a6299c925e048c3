"""Rewards of one's own, as docs/rewards.md has them."""

from __future__ import annotations

import json

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
