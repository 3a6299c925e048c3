"""The starts of a run, on one machine and of its Slurm jobs: ``run_dir/starts.jsonl``.

Whoever ends a run or a job says why in ``run_dir/ended``; the next start takes that into its line.
Imports nothing heavy: a job that is being cancelled reads it.
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
UNTOLD = "nobody was left to say why it ended (a lost node, a killed launcher, an end by Slurm)"


def note(run_dir: Path, job: str | None, checkpoint: str | None) -> None:
    """Add a start to the file.

    Args:
        job: Slurm's number; None on one machine.
        checkpoint: that it goes on from; None: the first step.

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
    """Every start, oldest first; a torn line (of a machine that lost its power) is none."""
    path, found = run_dir / STARTS_FILE, []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [start for start in found if isinstance(start, dict)]


def attempt(run_dir: Path) -> int:
    """The number of the newest start, from 1; 0 before the first, or where the file system does not
    say."""
    try:
        return len(noted(run_dir))
    except OSError:
        return 0


def end(run_dir: Path, why: str) -> None:
    """Say why this start ends: the first and the last line of it are kept. A folder that cannot be
    written to keeps nobody from ending."""
    lines = why.strip().splitlines()
    told = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"
    with contextlib.suppress(OSError):
        write_whole(run_dir / ENDED_FILE, told.removeprefix("aent: ") + "\n")


def why_ended(run_dir: Path) -> str | None:
    """Why the newest start has ended; None while it goes on, or where nobody has said so."""
    try:
        return (run_dir / ENDED_FILE).read_text(errors="replace").strip() or None
    except OSError:
        return None
