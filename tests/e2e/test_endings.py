"""Runs that end early: signals, dead children. No hang, no orphan, correct status."""

from __future__ import annotations

import signal

import psutil
import pytest

from e2e.jobs import PATIENCE_S
from processes import assert_gone, command_line
from wording import assert_names

pytestmark = pytest.mark.slow


TWO_RANKS = ("task.heldout=0", "trainer.tensor_parallel=1")  # a pipeline
ONE_RANK = ("task.heldout=0", "trainer.tensor_parallel=1", "trainer.pipeline_parallel=1")


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM]
)
def test_a_signal_stops_everything(start_job, number):
    job = start_job("steps=50", *ONE_RANK)
    job.wait_for("step  1/50")
    family = job.descendants()
    assert any("aent.inference.server" in command_line(p) for p in family)
    job.process.send_signal(number)
    assert job.wait() == 128 + number
    assert_gone(family)
    assert_names(job.text, number.name)
    assert job.status() == "KILLED"


@pytest.mark.full
def test_a_dead_rank_ends_the_job_with_its_last_lines(start_job):
    job = start_job("steps=50", *TWO_RANKS)
    job.wait_for("step  1/50")
    family = job.descendants()
    ranks = [p for p in family if "aent.launch.rank" in command_line(p)]
    assert len(ranks) == 2
    ranks[-1].kill()
    assert job.wait() == 1
    assert_gone(family)
    assert_names(job.text, "trainer rank 1", "SIGKILL")
    assert job.status() == "FAILED"


def test_a_dead_engine_ends_the_job_with_its_last_lines(start_job):
    job = start_job("steps=50", *ONE_RANK)
    job.wait_for("step  1/50")
    family = job.descendants()
    (server,) = [p for p in family if "aent.inference.server" in command_line(p)]
    server.kill()
    assert job.wait() == 1
    assert_gone(family)
    assert_names(job.text, "vLLM server", "SIGKILL")
    assert job.status() == "FAILED"


@pytest.mark.full
def test_a_lost_engine_is_started_again_and_with_too_few_the_job_ends(start_job):
    job = start_job("steps=200", "rollout.engines=2", "rollout.min_engines=1", *TWO_RANKS)

    def servers() -> list[psutil.Process]:
        return [
            p for p in job.descendants() if command_line(p)[1:3] == ["-m", "aent.inference.server"]
        ]

    job.wait_for("step   1/200")
    first = servers()
    assert len(first) == 2
    first[1].kill()
    job.wait_for("is started again")
    job.wait_for("takes part from here on")
    after = servers()
    assert len(after) == 2
    assert first[0] in after
    for server in after:
        server.kill()
    assert job.wait() == 1
    assert_names(job.text, "0 engines", "rollout.min_engines=1")
    assert_gone(after)
    assert job.status() == "FAILED"


@pytest.mark.full
def test_a_killed_launcher_leaves_no_orphan(start_job):
    job = start_job("steps=50", *TWO_RANKS)
    job.wait_for("step  1/50")
    family = job.descendants()
    job.process.kill()
    job.wait()
    assert_gone(family, within_s=PATIENCE_S)


def test_a_gap_beyond_the_bound_stops_the_run_before_the_first_update(start_job, shared_engine):
    job = start_job("steps=2", *ONE_RANK, *shared_engine, "rollout.max_logprob_gap=1e-12")
    assert job.wait() == 1
    assert "rollout.max_logprob_gap=1e-12" in job.text
    assert "step 1/2" not in job.text
    assert job.status() == "FAILED"
