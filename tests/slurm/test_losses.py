"""Jobs that lose an engine, or their place to a more urgent job, and finish or continue."""

from __future__ import annotations

import signal

import pytest

from aent.tracking import journal
from slurm.conftest import LIGHT, SLURM, TINY
from wording import assert_names

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_a_lost_engine_is_back_before_the_job_ends_and_the_nodes_are_given_back(cluster, submit):
    groups = ("cluster.engine_nodes=2", "cluster.gpus_per_node=0")
    engines = ("rollout.engines=2", "rollout.min_engines=1")
    rest = ("steps=1000", "cluster.flags=[--no-requeue]")  # it ends when it is asked to
    job = submit("aent", TINY, *LIGHT, *groups, *engines, *rest)
    job.wait_for(" 2/1000")
    tasks = job.tasks("aent.slurm.serve")
    (server,) = tasks[1].children()
    server.kill()
    job.wait_for("takes part from here on")
    kept = (job.run_dir / "logs" / "engines.log").read_text()
    assert_names(kept, "engine 1", "SIGKILL")
    tasks[0].send_signal(signal.SIGSTOP)  # it cannot hear that the job is over
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.wait() == "FAILED", job.log
    assert "aent: not requeued" in job.log
    job.curve(job.steps_done)  # every step is there
    cluster.wait_until_idle()


def test_a_preempted_job_is_requeued_and_loses_one_step_at_most(cluster, submit):
    script = str(SLURM / "train.sbatch")
    job = submit("--gpus-per-node=0", script, TINY, "steps=1000", *LIGHT)  # it does not end
    job.wait_for(" 2/1000")
    run_id, seen = job.mlflow()[1].info.run_id, job.steps_done
    cluster.submit(
        "--partition=urgent", "--nodes=4", "--exclusive", "--wrap=true", "--output=/dev/null"
    )
    job.wait_for("aent: resumes after")
    assert int(job.log.split("aent: resumes after ")[1].split()[0]) >= seen - 1
    entries = journal.entries(job.run_dir / journal.JOURNAL_FILE)
    assert "KILLED" in [e.status for e, _ in entries if isinstance(e, journal.Status)]
    job.wait_for(f" {seen + 2}/1000")
    job.curve(seen + 2)
    assert job.mlflow()[1].info.run_id == run_id
    job.wait_for_status("RUNNING")
