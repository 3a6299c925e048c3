"""A failed job's last step: ``python -m aent.slurm.finish RUN_DIR STATUS [--ranks-began]`` says why
it failed, and closes the MLflow run with STATUS (FAILED or KILLED; RUNNING leaves it open, for a
run that will continue)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from aent.launch import starts
from aent.runtime import failures, heartbeats
from aent.runtime.log import begin, log
from aent.tracking.ended import Status, mark_ended

# time to tell MLflow; a cancelled job is killed after 30 s (Slurm's KillWait), part of which its
# steps have used
TOLD_S = {"FAILED": 60.0, "KILLED": 20.0}


def main(run_dir: Path, status: Status | Literal["RUNNING"], ranks_began: bool) -> None:
    """Print the reason last, because people look at the end of the job's log. A step that fails
    before the ranks start has printed its own reason."""
    mine = last_started_by(run_dir) == os.environ["SLURM_JOB_ID"]
    why = failures.first(run_dir) if ranks_began else ""
    if status == "FAILED" and mine:
        starts.end(run_dir, why or f"job {os.environ['SLURM_JOB_ID']} failed: see its log")
    if status != "RUNNING" and mine:
        mark_ended(run_dir, status, TOLD_S[status])
    if ranks_began and status != "RUNNING":
        for rank, place in heartbeats.places(run_dir).items():
            log.warning(f"aent: rank {rank} was at {place}")
        why = why or (
            "aent: no trainer rank wrote a reason: see srun's lines above, which name killed "
            "tasks, "
            f"and {run_dir}/logs"
        )
    if why:
        log.error(why)


def last_started_by(run_dir: Path) -> str | None:
    """The job that started last in this folder (``slurm.prepare``). A job that was refused there
    must not close another job's run."""
    begun = starts.noted(run_dir)
    return begun[-1].get("job") if begun else None


if __name__ == "__main__":
    begin("finish", starts.attempt(Path(sys.argv[1])))
    main(Path(sys.argv[1]), sys.argv[2], "--ranks-began" in sys.argv[3:])  # type: ignore[arg-type]
