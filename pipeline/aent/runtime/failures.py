"""Why a run ended: each failing rank writes its error to a file, and the end of the job reports the
first."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aent.recipe.redact import redacted
from aent.runtime.log import log

FOLLOWERS = ("RankZeroFailed",)  # errors that only say that another rank failed
LINES = 40  # lines of the traceback that are shown; an engine's error has 25 lines of its log
ROOM = 32768  # bytes of a rank's file, reserved in advance


def clear(run_dir: Path) -> None:
    """Forget the failures of an earlier start."""
    for path in (run_dir / "failures").glob("rank*"):
        path.unlink()


@contextmanager
def recorded(run_dir: Path, rank: int) -> Iterator[None]:
    """Write this rank's error to ``run_dir/failures`` and raise it.

    The file's space is reserved in advance, so that a full disk can be reported too.
    """
    place = run_dir / "failures" / f"rank{rank}.partial"
    _reserve(place)
    try:
        yield
    except Exception as error:
        record = {
            "rank": rank,
            "host": socket.gethostname(),
            "time": time.time(),
            "error": type(error).__name__,
            "traceback": redacted(traceback.format_exc())[-ROOM // 2 :],
        }
        try:
            _fill(place, json.dumps(record).encode())
        # the traceback above is in this rank's own log, if that can be written
        except OSError as why:
            log.warning(f"aent: {place} cannot be written: {why}")
        raise
    finally:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)


def _reserve(place: Path) -> None:
    try:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b" " * ROOM)
    except OSError as error:
        log.warning(f"aent: {place} cannot be written: {error}")


def _fill(place: Path, text: bytes) -> None:
    """Write to the reserved space. The file gets its name when it is complete, because other
    processes end this one as soon as they see it."""
    place.parent.mkdir(exist_ok=True)
    with open(os.open(place, os.O_WRONLY | os.O_CREAT), "wb") as file:
        file.write(text.ljust(ROOM))  # JSON may end with blanks
        file.flush()
        os.fsync(file.fileno())
    place.replace(place.with_suffix(".json"))


def first(run_dir: Path) -> str | None:
    """The error of the first rank that failed by itself; None if no rank has written one.

    The order is by the machines' clocks; ranks that failed because of another one come last.
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
    """Whether all errors written so far only say that another rank failed."""
    records = _records(run_dir)
    return bool(records) and all(record["error"] in FOLLOWERS for record in records)


def _records(run_dir: Path) -> list[dict[str, Any]]:
    found = []
    for path in (run_dir / "failures").glob("rank*.json"):
        with contextlib.suppress(OSError, ValueError):  # a file that cannot be read says nothing
            found.append(json.loads(path.read_text()))
    return found
