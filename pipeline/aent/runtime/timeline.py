"""The events of a process with their times: ``run_dir/timeline/rankN.jsonl``, one line for each
event. ``aent timeline`` makes a trace of them (``analysis.timeline``)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aent.runtime.log import log

FOLDER = "timeline"
LIMIT = 1000  # most events of one name in a step: 8,192 requests would take a megabyte
ENGINE, JUDGES = "engine ", "judges"  # tracks of other processes: the first with an address
TRANSFER = "transfer"  # track of the parts of a weight update, on rank 0


def file_of(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"rank{rank}.jsonl"


@dataclass
class _Thinned:
    """Events of one name: all of them, or if there are more than ``LIMIT`` every second, fourth
    ... of them, so that late ones are shown too."""

    events: list[dict[str, Any]] = field(default_factory=list)
    every: int = 1
    seen: int = 0

    def add(self, event: dict[str, Any]) -> None:
        if self.seen % self.every == 0:
            self.events.append(event)
        self.seen += 1
        if len(self.events) > LIMIT:
            self.events, self.every = self.events[::2], 2 * self.every


class Timeline:
    """Collects events of any thread, and writes them on request.

    If the file cannot be written, stderr says so once, and only its events are lost.
    """

    def __init__(self, path: Path | None = None) -> None:
        """path: None writes nothing."""
        self._path = path
        self._kept: dict[str, _Thinned] = {}
        self._lock = threading.Lock()
        self._told = False

    @contextmanager
    def span(self, name: str, track: str = "phases", **facts: object) -> Iterator[None]:
        """Record the block as an event."""
        begin = time.time()
        try:
            yield
        finally:
            self.add(name, begin, track, **facts)

    def add(self, name: str, begin: float, track: str, **facts: object) -> None:
        """Record an event that ends now. begin: seconds since 1970. track: the row in which it is
        drawn. facts: JSON values shown with it."""
        if self._path is None:
            return
        event = {"name": name, "begin": begin, "end": time.time(), "track": track, **facts}
        with self._lock:
            self._kept.setdefault(name, _Thinned()).add(event)

    def write(self) -> None:
        """Append the collected events to the file."""
        if self._path is None:
            return
        with self._lock:
            kept, self._kept = self._kept, {}
        events = [event for one in kept.values() for event in one.events]
        for name, one in kept.items():
            if one.every > 1:
                now = time.time()
                told = f"{one.seen} events {name}: one of {one.every} is drawn"
                events.append({"name": told, "begin": now, "end": now, "track": "phases"})
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a") as file:
                file.writelines(json.dumps(event) + "\n" for event in events)
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning(f"aent: {self._path}: {error} (the rank continues)")
