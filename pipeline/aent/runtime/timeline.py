"""The events of a process with their times: ``run_dir/timeline/rankN.jsonl``, one line for each
event. ``aent timeline`` makes a trace of them (``analysis.timeline``)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aent.runtime.log import log

FOLDER = "timeline"
LIMIT = 1000  # most events of a step: a step with 8,192 requests would take a megabyte


def file_of(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"rank{rank}.jsonl"


class Timeline:
    """Collects events of any thread, and writes them on request.

    If the file cannot be written, stderr says so once, and only its events are lost.
    """

    def __init__(self, path: Path | None = None) -> None:
        """path: None writes nothing."""
        self._path = path
        self._events: list[dict[str, Any]] = []
        self._left_out = 0
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
        if len(self._events) >= LIMIT:
            self._left_out += 1
            return
        end = time.time()
        self._events.append({"name": name, "begin": begin, "end": end, "track": track, **facts})

    def write(self) -> None:
        """Append the collected events to the file."""
        if self._path is None:
            return
        events, self._events = self._events, []
        left_out, self._left_out = self._left_out, 0
        if left_out:
            now = time.time()
            name = f"{left_out} events of this step are left out"
            events.append({"name": name, "begin": now, "end": now, "track": "phases"})
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a") as file:
                file.writelines(json.dumps(event) + "\n" for event in events)
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning(f"aent: {self._path}: {error} (the rank goes on)")
