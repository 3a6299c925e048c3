"""The log of a run's processes: Python's logging, with the logger ``aent``.

A command prints plain sentences: notices on standard output, warnings and errors on standard error.
A process of a run first calls ``begin``. From then on each line has time, level, process and
attempt (the number of this start of the run, from 1), and each start begins a section of its logs.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from aent.runtime.texts import encodable

log = logging.getLogger("aent")

OWN_ONLY = "own_only"  # set on a record (extra) that the terminal shows in another form
FORMAT = "%(asctime)s %(levelname)s [%(process_name)s, attempt %(attempt)d] %(message)s"


@dataclass(frozen=True)
class Place:
    """The process of a run that logs."""

    process: str
    attempt: int
    own: TextIO | None = None  # its own log, which gets every line; None: its two streams
    shown: bool = True  # lines also go to standard output, for a person


class _Handler(logging.Handler):
    """Writes to the current streams of ``sys``, which a live display replaces."""

    place: Place | None = None  # None: a command

    def emit(self, record: logging.LogRecord) -> None:
        """Ignore a line that cannot be written (a full disk, a closed pipe)."""
        if self.place is not None:
            record.process_name, record.attempt = self.place.process, self.place.attempt
        text = self.format(record)
        for stream in self._streams(record):
            with contextlib.suppress(OSError, ValueError):
                encoding = getattr(stream, "encoding", None)  # None: the stream is closed
                print(encodable(text, encoding), file=stream, flush=True)

    def _streams(self, record: logging.LogRecord) -> list[TextIO]:
        own = self.place.own if self.place is not None else None
        if getattr(record, OWN_ONLY, False):
            return [] if own is None else [own]
        if self.place is not None and own is not None:
            return [sys.stdout, own] if self.place.shown else [own]
        return [sys.stderr if record.levelno >= logging.WARNING else sys.stdout]

    def be(self, place: Place | None) -> None:
        self.place = place
        self.setFormatter(None if place is None else logging.Formatter(FORMAT))


_handler = _Handler()
log.addHandler(_handler)
log.setLevel(logging.INFO)
log.propagate = False


def begin(process: str, attempt: int) -> None:
    """From now on, every line of this process has time, level, process and attempt."""
    _handler.be(Place(process, attempt))


@contextmanager
def logged(process: str, attempt: int) -> Iterator[None]:
    """``begin`` with a section on standard output; at the end, plain sentences again."""
    begin(process, attempt)
    print(title(process), flush=True)
    try:
        yield
    finally:
        _handler.be(None)


def begin_rank(rank: int, attempt: int) -> None:
    """``begin`` for a trainer rank: every line goes to its own log (its standard error); lines of
    rank 0 also go to its standard output, for a person. Begins a section of the log."""
    _handler.be(Place(f"rank {rank}", attempt, sys.stderr, rank == 0))
    print(title(f"rank {rank}"), file=sys.stderr, flush=True)


def begin_section(path: Path, process: str) -> None:
    """Begin a section of a log that another process continues; does nothing if this process belongs
    to no run. Raises OSError."""
    if _handler.place is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(title(process) + "\n")


def title(process: str) -> str:
    """The line that begins a start's section in a log. Needs ``begin``."""
    assert _handler.place is not None
    now = logging.Formatter().formatTime(logging.makeLogRecord({}))
    return f"======== attempt {_handler.place.attempt}, {process}: {now} ========"
