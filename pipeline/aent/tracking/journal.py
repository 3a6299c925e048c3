"""The journal: every metric point of a run, on disk before anything else hears of it.

One JSON object a line: step, time (milliseconds since 1970, fixed when the point was logged), key,
value. A store that takes the same (key, time, step, value) twice as once can be fed from it again
and again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """One value of one metric."""

    step: int
    time: int  # milliseconds since 1970
    key: str
    value: float


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def append(path: Path, points: Iterable[Point]) -> None:
    """Add points to the journal at ``path`` and flush; OSError if it cannot be written."""
    lines = [json.dumps(point._asdict()) + "\n" for point in points]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def read(path: Path) -> list[Point]:
    """Every whole line of the journal; a last line cut short by a kill is left out."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            entry = json.loads(line)
            points.append(Point(entry["step"], entry["time"], entry["key"], entry["value"]))
    return points


def colliding(key: str, others: Iterable[str]) -> str | None:
    """The name among ``others`` that ``key`` may not stand beside.

    Some stores keep a metric as a file under its name: ``a`` and ``a/b`` cannot both be there.
    """
    for other in others:
        if other.startswith(f"{key}/") or key.startswith(f"{other}/"):
            return other
    return None
