"""``make test-faults``: the launcher is killed as a phase begins; no process survives; the resumed
run is the undisturbed one to the last bit. Every phase of one step, and some pairs of two steps."""

from __future__ import annotations

import os
import random
from pathlib import Path

import psutil
import pytest

from e2e.compare import assert_same_run
from e2e.jobs import Job, assert_gone

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

STEPS = 3
RUN = (f"steps={STEPS}", "task.heldout=4", "checkpoint.every=2", "evaluation.every=2")
# what begins in step 1, in this order; the step is followed by a checkpoint and an evaluation
PHASES = ("sample", "score", "train", "sync", "record", "evaluate", "checkpoint", "publish")
# before the first step there is no checkpoint yet, so these start anew
BEFORE = ("0:sync", "0:evaluate", "0:checkpoint", "0:publish")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    job = Job(tmp_path_factory.mktemp("undisturbed"), *RUN)
    assert job.wait(500) == 0, job.text
    return job.run_dir


def kill_at(folder: Path, place: str) -> None:
    """Start or resume the run and have it killed there."""
    inject = Path(__file__).parent / "inject"
    path = os.pathsep.join([str(inject), os.environ.get("PYTHONPATH", "")])
    env = {"AENT_TEST_KILL_AT": place, "PYTHONPATH": path}
    job = Job(folder, *RUN, "resume=auto", env=env)
    assert job.wait(500) == -9, f"{place}: {job.text}"
    psutil.wait_procs(job.survivors(), timeout=15)
    assert_gone(job.survivors())


def finish(folder: Path, undisturbed: Path) -> None:
    job = Job(folder, *RUN, "resume=auto")
    assert job.wait(500) == 0, job.text
    assert_same_run(job.run_dir, undisturbed, STEPS)


@pytest.mark.parametrize("phase", PHASES)
def test_killed_once(tmp_path, undisturbed, phase):
    kill_at(tmp_path, f"1:{phase}")
    finish(tmp_path, undisturbed)


@pytest.mark.parametrize("seed", range(3))
def test_killed_in_two_steps(tmp_path, undisturbed, seed):
    choose = random.Random(seed).choice
    kill_at(tmp_path, choose([*BEFORE, *(f"0:{p}" for p in PHASES[:5])]))
    kill_at(tmp_path, f"2:{choose(PHASES)}")
    finish(tmp_path, undisturbed)


def test_killed_while_the_policy_is_saved(tmp_path, undisturbed):
    kill_at(tmp_path, f"{STEPS - 1}:save")
    finish(tmp_path, undisturbed)
