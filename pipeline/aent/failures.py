"""Why a run ended: each failing rank writes its error where the end of the job finds the first."""

from __future__ import annotations

import json
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLLOWERS = ("RankZeroFailed",)  # errors that only say that another rank has failed
LINES = 40  # of the traceback, shown: an engine's error has 25 of its log


def clear(run_dir: Path) -> None:
    """Forget the failures of an earlier start."""
    for path in (run_dir / "failures").glob("rank*.json"):
        path.unlink()


@contextmanager
def recorded(run_dir: Path, rank: int) -> Iterator[None]:
    """Write what this rank fails of to ``run_dir/failures``, and let it fail."""
    try:
        yield
    except Exception as error:
        folder = run_dir / "failures"
        folder.mkdir(exist_ok=True)
        record = {
            "rank": rank,
            "host": socket.gethostname(),
            "time": time.time(),
            "error": type(error).__name__,
            "traceback": traceback.format_exc(),
        }
        partial = folder / f"rank{rank}.partial"
        partial.write_text(json.dumps(record))
        partial.replace(folder / f"rank{rank}.json")  # whole or not there: others end this process
        raise


def first(run_dir: Path) -> str | None:
    """The first error of the first rank that failed by itself; None if no rank has written one.

    The order is that of the machines' clocks; a rank that only followed another one comes last.
    """
    if not (records := _records(run_dir)):
        return None
    record = min(records, key=lambda r: (r["error"] in FOLLOWERS, r["time"]))
    lines = record["traceback"].rstrip().splitlines()[-LINES:]
    others = len(records) - 1
    return (
        f"aent: rank {record['rank']} on {record['host']} failed first"
        + (f" ({others} more followed)" if others else "")
        + f"; the last lines of {run_dir}/logs/rank{record['rank']}.log:\n"
        + "\n".join(lines)
    )


def only_followed(run_dir: Path) -> bool:
    """Whether all that ranks have written so far is that another one failed."""
    records = _records(run_dir)
    return bool(records) and all(record["error"] in FOLLOWERS for record in records)


def _records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in (run_dir / "failures").glob("rank*.json")]
