"""The starts of a run's jobs: ``run_dir/starts.jsonl``, one line each.

Imports nothing heavy: a job that is being cancelled reads it.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from aent.tracking import journal

STARTS_FILE = "starts.jsonl"


def note(run_dir: Path, start: dict[str, str | None]) -> None:
    """Add a start to the file. Raises OSError."""
    path = run_dir / STARTS_FILE
    journal.drop_torn_line(path)
    with path.open("a") as file:
        file.write(json.dumps(start) + "\n")


def noted(run_dir: Path) -> list[dict[str, str | None]]:
    """Every start, oldest first; a torn line (of a machine that lost its power) is none."""
    path, found = run_dir / STARTS_FILE, []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [start for start in found if isinstance(start, dict)]
