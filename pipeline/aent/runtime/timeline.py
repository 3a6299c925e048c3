"""What a process did, from when to when: ``run_dir/timeline/rankN.jsonl``, a line an event, from
which ``aent timeline`` makes a picture (``analysis.timeline``)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aent.runtime.log import log

FOLDER = "timeline"
LIMIT = 1000  # events of a step: one of 8,192 requests would be a megabyte otherwise


def file_of(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"rank{rank}.jsonl"


class Timeline:
    """Collects events of any thread; writes them when it is told to.

    A file that cannot be written is told once on stderr, and costs its events only.
    """

    def __init__(self, path: Path | None = None) -> None:
        """path: None writes nothing."""
        self._path = path
        self._events: list[dict[str, Any]] = []
        self._left_out = 0
        self._told = False

    @contextmanager
    def span(self, name: str, track: str = "phases", **facts: object) -> Iterator[None]:
        """The event that the block is."""
        begin = time.time()
        try:
            yield
        finally:
            self.add(name, begin, track, **facts)

    def add(self, name: str, begin: float, track: str, **facts: object) -> None:
        """An event that ends now. begin: seconds since 1970. track: the row that it is drawn in.
        facts: shown with it; values of JSON."""
        if self._path is None:
            return
        if len(self._events) >= LIMIT:
            self._left_out += 1
            return
        end = time.time()
        self._events.append({"name": name, "begin": begin, "end": end, "track": track, **facts})

    def write(self) -> None:
        """Append what was collected to the file."""
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
