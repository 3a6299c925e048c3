"""A failed job's last step: ``python -m aent.slurm.finish RUN_DIR STATUS [--ranks-began]`` says
why, and closes MLflow's run with STATUS (FAILED or KILLED; RUNNING: it goes on and stays open)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from aent.launch import starts
from aent.runtime import failures, heartbeats
from aent.runtime.log import begin, log
from aent.tracking.ended import Status, mark_ended

# for MLflow to hear of it; a job that is cancelled is killed 30 s later (Slurm's KillWait), some of
# which its steps have taken
TOLD_S = {"FAILED": 60.0, "KILLED": 20.0}


def main(run_dir: Path, status: Status | Literal["RUNNING"], ranks_began: bool) -> None:
    """The words come last: the end of the job's log is where a person looks. What fails before
    there are ranks has said why itself."""
    mine = last_started_by(run_dir) == os.environ["SLURM_JOB_ID"]
    why = failures.first(run_dir) if ranks_began else ""
    if status == "FAILED" and mine:
        starts.end(run_dir, why or f"job {os.environ['SLURM_JOB_ID']} failed: its log says why")
    if status != "RUNNING" and mine:
        mark_ended(run_dir, status, TOLD_S[status])
    if ranks_began and status != "RUNNING":
        for rank, place in heartbeats.places(run_dir).items():
            log.warning(f"aent: rank {rank} was at {place}")
        why = why or (
            "aent: no trainer rank has written why: see the lines of srun above, which name tasks "
            f"that were killed, and {run_dir}/logs"
        )
    if why:
        log.error(why)


def last_started_by(run_dir: Path) -> str | None:
    """The job that started last in this folder (``slurm.prepare``): a job that was refused there
    has no say over another one's run."""
    begun = starts.noted(run_dir)
    return begun[-1].get("job") if begun else None


if __name__ == "__main__":
    begin("finish", starts.attempt(Path(sys.argv[1])))
    main(Path(sys.argv[1]), sys.argv[2], "--ranks-began" in sys.argv[3:])  # type: ignore[arg-type]
