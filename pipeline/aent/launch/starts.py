"""Every start of a run, on one machine or as a Slurm job: ``run_dir/starts.jsonl``.

The process that ends a run or a job writes the reason to ``run_dir/ended``; the next start copies
it into its own line. Imports nothing heavy, because a job that is being cancelled reads it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

from aent.runtime.files import write_whole
from aent.tracking import journal

STARTS_FILE = "starts.jsonl"
ENDED_FILE = "ended"
UNTOLD = "no process was left to record why it ended (a lost node, a killed launcher, or Slurm)"


def note(run_dir: Path, job: str | None, checkpoint: str | None) -> None:
    """Add a start to the file.

    Args:
        job: Slurm's job id; None on one machine.
        checkpoint: the one it continues from; None: the first step.

    Raises OSError.
    """
    path, before = run_dir / STARTS_FILE, noted(run_dir)
    start = {
        "job": job,
        "checkpoint": checkpoint,
        "time": time.time(),
        "host": socket.gethostname(),
        "after": (why_ended(run_dir) or UNTOLD) if before else None,
    }
    journal.drop_torn_line(path)
    with path.open("a") as file:
        file.write(json.dumps(start) + "\n")
    (run_dir / ENDED_FILE).unlink(missing_ok=True)


def noted(run_dir: Path) -> list[dict[str, Any]]:
    """Every start, oldest first. An incomplete line (after a power failure) is left out."""
    path, found = run_dir / STARTS_FILE, []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [start for start in found if isinstance(start, dict)]


def attempt(run_dir: Path) -> int:
    """The number of the newest start, from 1; 0 before the first, or if the file cannot be read."""
    try:
        return len(noted(run_dir))
    except OSError:
        return 0


def end(run_dir: Path, why: str) -> None:
    """Record why this start ends: the first and the last line of the reason. A folder that cannot
    be written to is no error here."""
    lines = why.strip().splitlines()
    told = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"
    with contextlib.suppress(OSError):
        write_whole(run_dir / ENDED_FILE, told.removeprefix("aent: ") + "\n")


def why_ended(run_dir: Path) -> str | None:
    """Why the newest start ended; None while it runs, or if no reason was recorded."""
    try:
        return (run_dir / ENDED_FILE).read_text(errors="replace").strip() or None
    except OSError:
        return None
