"""The journal: everything about a run that is sent to MLflow, in order, and on disk first.

One JSON object per line. Times are milliseconds since 1970, fixed when the entry was made. So the
journal can be sent again to a store that takes the same (key, time, step, value) twice as once.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from aent.runtime.log import log

JOURNAL_FILE = "journal.jsonl"
BLOCK = 2**16  # bytes that are read at once from its end


class Point(NamedTuple):
    """One value of one metric."""

    step: int
    time: int
    key: str
    value: float


class File(NamedTuple):
    """A file that is complete and will not change; ``file`` is relative to the run's folder."""

    time: int
    file: str
    folder: str  # among MLflow's artifacts


class Status(NamedTuple):
    """The run has this status from now on: RUNNING, FINISHED, FAILED or KILLED."""

    time: int
    status: str


class Tag(NamedTuple):
    """The run's tag ``tag`` is ``text`` from now on."""

    time: int
    tag: str
    text: str


class Entity(NamedTuple):
    """An entity that MLflow has a page for: ``content`` is its complete file, relative to the run's
    folder."""

    time: int
    entity: str  # traces, datasets or policy
    content: str


Entry = Point | File | Status | Tag | Entity
_KINDS: dict[frozenset[str], type[Entry]] = {
    frozenset(kind._fields): kind for kind in (Point, File, Status, Tag, Entity)
}


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def append(path: Path, new: Iterable[Entry]) -> None:
    """Add all entries to the journal at ``path``, or none: OSError if it cannot be written."""
    lines = "".join(json.dumps(entry._asdict()) + "\n" for entry in new).encode()
    before: int | None = None
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            written = file.write(lines)
            if written != len(lines):  # as happens on a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError:  # of the write, or of closing: NFS may only then find its disk full (close(2))
        if before is not None:
            os.truncate(path, before)
        raise


def entries(path: Path, start: int = 0) -> Iterator[tuple[Entry | None, int]]:
    """Every complete line from byte ``start`` on, with the position after it.

    A last line cut short by a kill is left out. A damaged line (a power failure leaves zeros) is
    None: it is reported once on stderr, and only its own entry is lost.
    """
    position = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            entry: Entry | None = None
            try:
                fields = json.loads(line)
                entry = _KINDS[frozenset(fields)](**fields)
            except (ValueError, KeyError, TypeError):
                _tell_damaged(path, position)
            yield entry, position


def ends_line(path: Path, position: int) -> bool:
    """Whether a line of the journal ends before this byte (or none has begun)."""
    if position == 0:
        return True
    with path.open("rb") as file:
        file.seek(position - 1)
        return file.read(1) == b"\n"


def _tell_damaged(path: Path, position: int) -> None:
    if (path, position) not in _told:
        _told.add((path, position))
        log.warning(f"aent: {path}: damaged line before byte {position} is left out")


_told: set[tuple[Path, int]] = set()


def read(path: Path) -> Iterator[Point]:
    """Every metric point of the journal, one after another: those of many machines over weeks would
    take gigabytes."""
    return (entry for entry, _ in entries(path) if isinstance(entry, Point))


def tags(path: Path) -> dict[str, Tag]:
    """The newest text of each tag; empty if there is no journal."""
    if not path.is_file():
        return {}
    return {entry.tag: entry for entry, _ in entries(path) if isinstance(entry, Tag)}


def last_status(path: Path) -> str | None:
    """The run's newest status; None if there is no journal or no status in it."""
    found = None
    if path.is_file():
        for entry, _ in entries(path):
            found = entry.status if isinstance(entry, Status) else found
    return found


def drop_torn_line(path: Path) -> None:
    """Cut off an incomplete last line of a killed writer, before another one continues."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        size = start = file.seek(0, os.SEEK_END)
        kept = 0
        while start > 0 and kept == 0:  # from its end: it may have gigabytes
            end, start = start, max(start - BLOCK, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            kept = start + found + 1 if found >= 0 else 0
    if kept < size:
        os.truncate(path, kept)


def colliding(key: str, others: Iterable[str]) -> str | None:
    """The name among ``others`` that ``key`` conflicts with.

    Some stores keep a metric as a file under its name: ``a`` and ``a/b`` cannot both exist.
    """
    for other in others:
        if other.startswith(f"{key}/") or key.startswith(f"{other}/"):
            return other
    return None
