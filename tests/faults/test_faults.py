"""``make test-faults``: the launcher is killed as a phase begins; no process survives; the resumed
run equals the undisturbed one, bit for bit.

One run is killed repeatedly, each time at the next phase. Every start but the first continues from
the state that a kill left, and repeats the phase in which it happened. The tracker compares
repeated steps with the journal at once, and the test compares everything with the undisturbed run
at the end.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from e2e.compare import assert_same_run, replay
from e2e.jobs import Job
from processes import assert_gone

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(3600)]

STEPS = 4
RUN = (f"steps={STEPS}", "task.heldout=4", "checkpoint.every=2", "evaluation.every=2")
RUN += ("trainer.tensor_parallel=1",)  # two ranks: a pipeline
# what begins in step 1, in this order; the step is followed by an evaluation and a checkpoint
PHASES = ("sample", "score", "train", "sync", "record", "evaluate", "checkpoint", "publish")
# before the first step there is no checkpoint yet: after these phases the run starts again
BEFORE = ("0:sync", "0:evaluate", "0:checkpoint", "0:publish")
SEED = 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    job = Job(tmp_path_factory.mktemp("undisturbed"), *RUN)
    assert job.wait() == 0, job.text
    return job.run_dir


def kill_at(folder: Path, place: str, *overrides: str, hold_writes: bool = False) -> Job:
    """Start or resume the run and have it killed there."""
    inject = Path(__file__).parent / "inject"
    path = os.pathsep.join([str(inject), os.environ.get("PYTHONPATH", "")])
    env = {"AENT_TEST_KILL_AT": place, "PYTHONPATH": path}
    if hold_writes:
        env["AENT_TEST_HOLD_WRITES"] = "1"
    job = Job(folder, *RUN, "resume=auto", *overrides, env=env)
    assert job.wait() == -9, f"{place}: {job.text}"
    assert_gone(job.survivors(), within_s=60)
    return job


def finish(folder: Path, undisturbed: Path) -> None:
    job = Job(folder, *RUN, "resume=auto")
    assert job.wait() == 0, job.text
    assert_same_run(job.run_dir, undisturbed, STEPS)


def test_killed_at_every_phase_of_a_step_and_at_some_of_the_others(tmp_path, undisturbed):
    choose = random.Random(SEED).choice
    places = [choose(BEFORE[:2]), *BEFORE[2:], f"0:{choose(PHASES[:3])}"]
    places += [f"1:{phase}" for phase in PHASES]
    places += [f"2:{choose(PHASES[:5])}", f"3:{choose(PHASES)}", f"{STEPS - 1}:save"]
    for place in places:
        kill_at(tmp_path, place)
    finish(tmp_path, undisturbed)


def test_killed_at_every_phase_while_the_next_step_is_sampled(tmp_path):
    """What was sampled ahead and is on disk is used again, the rest asked for again, by the weights
    of then: the run in one is the one with the same rollouts."""
    ahead = ("rollout.max_staleness=1", "algorithm.importance=truncated_token", "checkpoint.keep=9")
    for place in [*BEFORE[:1], *(f"1:{phase}" for phase in PHASES), "2:sample", "3:train"]:
        kill_at(tmp_path, place, *ahead)
    job = Job(tmp_path, *RUN, *ahead, "resume=auto")
    assert job.wait() == 0, job.text
    whole = replay(tmp_path, "whole", *RUN, *ahead)
    assert_same_run(whole, job.run_dir, STEPS, begins_evaluated=True)


def test_killed_while_a_checkpoint_is_written_beside_the_training(tmp_path, undisturbed):
    """Checkpoints that the run does not wait for: half-written, not yet renamed, complete."""
    goes_on = "checkpoint.asynchronous=true"
    kill_at(tmp_path, "2:train", goes_on, hold_writes=True)
    assert checkpoints(tmp_path) == ["step_000000", "step_000002.partial"]
    job = kill_at(tmp_path, "2:publish", goes_on)
    assert "step_000002.partial" in job.text
    assert checkpoints(tmp_path) == ["step_000000", "step_000002.partial"]
    kill_at(tmp_path, "3:train", goes_on)
    assert checkpoints(tmp_path) == ["step_000000", "step_000002"]
    finish(tmp_path, undisturbed)


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "run" / "checkpoints").iterdir())
