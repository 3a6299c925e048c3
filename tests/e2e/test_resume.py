"""One run in parts (stopped by SIGUSR1, killed, damaged) against the same run in one. The last part
writes its checkpoints while it continues."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter

import pytest

from aent.checkpoint import rollout_files
from aent.runtime.signals import CHECKPOINTED
from aent.tracking import journal
from e2e.compare import assert_same_run
from e2e.jobs import PATIENCE_S, Job
from processes import assert_gone
from wording import assert_names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the fixtures are four starts

STEPS = 6
# every entropy control but those of test_controls.py: what they remember of earlier steps is part
# of the checkpoint, what they draw is a function of seed and step
CONTROLS = (
    "entropy_controls=[{kind: quantile_baseline}, {kind: sample_switch, low: .1, high: 9}, "
    "{kind: surprise_boost, below: 9}, {kind: entropy_change_weight}, {kind: entropy_change_mask}, "
    "{kind: kept_gradient}, {kind: entropy_smoothing, high: 1.01}, "
    "{kind: probability_push, target: 1, probability: .05}, {kind: nucleus_anchor}, "
    "{kind: temperature_schedule}, "
    "{kind: rollout_budget, low: 2, high: 6}, {kind: entropy_advantage}, "
    "{kind: response_entropy_advantage}, {kind: advantage_clip, bound: 1}, "
    "{kind: clip_cov, share: .05, low: -9, high: 9}, {kind: kl_cov, share: .05}, "
    "{kind: entropy_ratio_clip}, {kind: advantage_kl}, {kind: top_entropy_tokens, share: .5}, "
    "{kind: entropy_budget, spend: 1e9}, {kind: low_probability_kl, share: .2}]"
)
RUN = (
    f"steps={STEPS}", "task.heldout=4", "task.size=8", "checkpoint.every=2", "checkpoint.keep=3",
    "entropy={measure: full}", "algorithm.kl_coefficient=0.05", CONTROLS,
    "controller.drives=gradient_share",  # by norms that every checkpoint must have
    "trainer.tensor_parallel=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def start():
    """``Job``, whose process ends with the tests."""
    jobs: list[Job] = []

    def start(*arguments) -> Job:
        jobs.append(Job(*arguments))
        return jobs[-1]

    yield start
    for job in jobs:
        job.process.kill()


@pytest.fixture(scope="module")
def undisturbed(start, shared_engine, tmp_path_factory):
    job = start(tmp_path_factory.mktemp("undisturbed"), *RUN, *shared_engine)
    assert job.wait() == 0, job.text
    return job


@pytest.fixture(scope="module")
def parts(start, shared_engine, tmp_path_factory):
    """The outputs of every start, the last job, the checkpoint that was damaged and the heartbeats
    that the killed start left, by file name."""
    folder = tmp_path_factory.mktemp("parts")
    outputs = []

    job = start(folder, *RUN, *shared_engine)
    job.wait_for("step 1/6")
    job.process.send_signal(signal.SIGUSR1)
    assert job.wait() == CHECKPOINTED, job.text
    assert job.status() == "RUNNING"
    assert_gone(job.survivors())
    outputs.append(job.text)
    run_id = (job.run_dir / "mlflow_run_id").read_text()

    job = start(folder, *RUN, "--resume")
    job.wait_for("step 5/6")  # after the checkpoint of 4 steps
    job.process.kill()
    assert_gone(job.survivors(), within_s=PATIENCE_S)
    outputs.append(job.text)
    heartbeats = {
        f.name: json.loads(f.read_text()) for f in (job.run_dir / "heartbeats").glob("rank*.json")
    }

    newest = max((job.run_dir / "checkpoints").glob("step_??????"))
    state = newest / "state.json"
    state.write_text(state.read_text() + " ")
    job = start(folder, *RUN, *shared_engine, "resume=auto", "checkpoint.asynchronous=true")
    assert job.wait() == 0, job.text
    outputs.append(job.text)
    assert (job.run_dir / "mlflow_run_id").read_text() == run_id
    return outputs, job, newest, heartbeats


def test_run_in_parts_equals_the_run_in_one(undisturbed, parts):
    assert_same_run(parts[1].run_dir, undisturbed.run_dir, STEPS)


def test_entropy_controls_did_what_they_are_for(undisturbed):
    """Each in its numbers; engine and trainer agree at every temperature."""
    values = {}
    for line in (undisturbed.run_dir / "journal.jsonl").read_text().splitlines():
        point = json.loads(line)
        if "key" in point:
            values.setdefault(point["key"], []).append(point["value"])
    temperatures = values["control/temperature_schedule/temperature"]
    assert temperatures[0] == 1.0
    assert len(set(temperatures)) == STEPS
    assert max(values["policy/logprob_gap"]) < 1e-3
    assert len(set(values["control/nucleus_anchor/anchor"])) == 1
    assert len(set(values["control/nucleus_anchor/mean"])) == STEPS
    assert values["control/entropy_smoothing/steps"] == list(range(1, STEPS + 1))
    push = values["control/probability_push/push"]
    assert all(-1 <= p <= 1 and p != 0 for p in push)
    # half of the tokens by top_entropy_tokens, a twentieth of all by clip_cov
    assert all(0.5 < share <= 0.55 for share in values["policy/masked_share"])
    assert any(0 < share < 1 for share in values["policy/kl_clamped_share"])
    budget = [values[f"control/entropy_budget/{name}"] for name in ("raised", "lowered", "bonus")]
    assert max(budget[0]) + max(budget[1]) > 0
    assert min(budget[2]) > 0
    assert max(values["policy/clip_fraction"]) > 0
    assert max(values["policy/kl_reference"]) > 0
    sizes = set()
    for step in range(STEPS):
        rollout = rollout_files.read(undisturbed.run_dir, step)
        if rollout is not None:  # those before the oldest checkpoint are gone
            groups = Counter(sample.group for sample in rollout.samples)
            assert sum(groups.values()) == 16
            sizes |= set(groups.values())
    assert sizes - {4}
    assert all(2 <= size <= 6 for size in sizes)


def test_mlflow_has_one_run_with_one_curve(parts):
    from mlflow.tracking import MlflowClient

    job = parts[1]
    client = MlflowClient(f"sqlite:///{job.run_dir.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'aent'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "controller/coefficient")
    assert [p.step for p in points] == list(range(STEPS))


def test_each_start_says_where_it_goes_on(parts):
    (first, second, third), _, newest, _ = parts
    assert_names(first, "SIGUSR1")
    assert "resumes after" in second
    assert_names(third, newest, "state.json")
    assert "resumes after" in third


def test_newest_checkpoints_are_kept_and_rollouts_that_they_need(parts):
    run_dir = parts[1].run_dir
    checkpoints = sorted(p.name for p in (run_dir / "checkpoints").iterdir() if not p.suffix)
    assert len(checkpoints) == 3
    assert checkpoints[-1] == f"step_{STEPS:06d}"
    oldest = int(checkpoints[0].removeprefix("step_"))
    rollouts = sorted(p.name for p in (run_dir / "rollouts").glob("step_*"))
    assert rollouts == [f"step_{step:06d}.npz" for step in range(oldest, STEPS)]


def test_a_killed_run_leaves_the_heartbeat_of_every_rank_and_a_finished_one_none(parts):
    _, job, _, after_kill = parts
    assert sorted(after_kill) == [f"rank{r}.json" for r in range(2)]
    assert all(beat["step"] in (4, 5) for beat in after_kill.values())
    assert list((job.run_dir / "heartbeats").glob("rank*.json")) == []


def test_a_change_that_would_corrupt_the_run_is_refused(start, parts):
    before = sorted(parts[1].run_dir.rglob("*"))
    job = start(parts[1].run_dir.parent, *RUN, "--resume", "seed=5")
    assert job.wait() == 2
    assert re.search(r"\bseed\b.*\b1\b.*\b5\b", job.text)
    assert sorted(parts[1].run_dir.rglob("*")) == before


def test_a_run_goes_on_beyond_its_end_by_another_layout(start, shared_engine, parts):
    run_dir = parts[1].run_dir
    constant = "controller={kind: constant, initial: 0.07, drives: gradient_share}"
    longer = (f"steps={STEPS + 1}", "trainer.pipeline_parallel=1", constant)
    job = start(run_dir.parent, *RUN[1:], *shared_engine, "--resume", *longer)
    assert job.wait() == 0, job.text
    assert re.search(rf"\bsteps\b.*\b{STEPS}\b.*\b{STEPS + 1}\b", job.text)
    assert "random" in job.text  # streams, which start again with another layout
    assert f"step {STEPS + 1}/{STEPS + 1}" in job.text
    points = list(journal.read(run_dir / "journal.jsonl"))
    used = [p.value for p in points if (p.key, p.step) == ("controller/coefficient", STEPS)]
    assert used == [0.07]
    assert (run_dir / "policy").is_dir()
    assert (run_dir / f"policy-step_{STEPS:06d}").is_dir()
