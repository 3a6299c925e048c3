"""Custom rewards, as in docs/rewards.md."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from aent.checkpoint import rollout_files
from e2e.jobs import Job

pytestmark = pytest.mark.slow

STEPS = 2


def test_three_graders_and_their_parts(shared_engine, tmp_path):
    """Every response has a grade from each grader; the sum is the reward, and both are recorded."""
    job = Job(
        tmp_path, f"steps={STEPS}", "checkpoint.every=9", "profile.steps=[1]", *shared_engine,
        recipe="recipes/rewards/own.yaml",
    )  # fmt: skip
    assert job.wait() == 0, job.text
    profile = "profiles/step_000001_rank0.json.gz"
    with gzip.open(job.run_dir / profile, "rt") as file:
        assert {"sample", "train", "sync", "aten::mm"} <= {
            event.get("name") for event in json.load(file)["traceEvents"]
        }
    (artifact,) = (tmp_path / "mlflow-artifacts").glob(f"*/artifacts/{profile}")
    assert artifact.read_bytes() == (job.run_dir / profile).read_bytes()
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


@pytest.mark.full
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


@pytest.mark.full
def test_a_mixture_of_three_sources_with_a_curriculum(shared_engine, tmp_path):
    """Every step has each source's share, judged by its own graders; the checkpoint keeps what the
    curriculum knows, which is what the steps have recorded."""
    steps = 3
    job = Job(
        tmp_path, f"steps={steps}", "checkpoint.every=9", "task.curriculum.replay=.5",
        *shared_engine, recipe="recipes/rewards/mixture.yaml",
    )  # fmt: skip
    assert job.wait() == 0, job.text
    points = [json.loads(line) for line in (job.run_dir / "journal.jsonl").open()]
    graders = {
        "sums": ["number"],
        "chains": ["reasoning_gym"],
        "talks": ["last_number", "difference"],
    }
    known: dict[int, list] = {}
    for step in range(steps):
        rollout = rollout_files.read(job.run_dir, step)
        found = {p["key"]: p["value"] for p in points if p.get("step") == step and "key" in p}
        prompts = {name: found[f"source/{name}/prompts"] for name in graders}
        assert prompts["sums"] == 3
        assert sum(prompts.values()) == 6
        assert all(1 <= prompts[name] <= 2 for name in ("chains", "talks"))
        for sample, verdict in zip(rollout.samples, rollout.verdicts):
            (grade,) = verdict.grades
            assert grade.name in graders[sample.source]
            assert grade.error == ""
        for name in graders:
            rewards = [s.reward for s in rollout.samples if s.source == name]
            assert found[f"source/{name}/reward_mean"] == pytest.approx(sum(rewards) / len(rewards))
        items = {sample.item for sample in rollout.samples}
        assert found["curriculum/repeated_share"] == len(items & set(known)) / 6
        for item in items:
            right = [
                verdict.score >= 1
                for sample, verdict in zip(rollout.samples, rollout.verdicts)
                if sample.item == item
            ]
            assert len(right) == 8
            known[item] = [known.get(item, [0])[0] + 1, step, sum(right) / 8]
    state = json.loads((job.run_dir / "checkpoints" / "step_000003" / "state.json").read_text())
    assert state["questions"] == {str(item): kept for item, kept in known.items()}
    assert {"evaluation/source/sums/accuracy", "evaluation/source/talks/accuracy"} <= {
        point.get("key") for point in points
    }
