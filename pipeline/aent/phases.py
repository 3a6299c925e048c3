"""Where a rank is, and how long it takes: wall time per phase of a step, and a heartbeat file.

``run_dir/heartbeats/rank0.json`` says {"step": 3, "phase": "train", "since": seconds since 1970};
it is written when a phase begins, and whole at any time. A thread of the rank renews its time of
modification, whatever the rank waits for, and adds "stuck_s" when the phase has got no further for
longer than its deadline. By the rank's own monotonic clock, which stands still while a machine is
suspended; so that whoever watches (``runtime.heartbeats``) need not compare clocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aent.runtime import heartbeats


@dataclass
class Phases:
    """Seconds per named phase since the last ``take``."""

    heartbeat: Path  # the file; its folder exists
    deadline_s: float  # without progress in a phase, after which the rank is stuck
    step: int = 0  # that the phases belong to
    seconds: dict[str, float] = field(default_factory=dict)
    _place: dict[str, object] = field(default_factory=dict)  # what the file says
    _progress: float = field(default_factory=time.monotonic)  # when there was some
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def of(run_dir: Path, rank: int, deadline_s: float) -> Phases:
        """Those of a rank that begins."""
        file = heartbeats.file_of(run_dir, rank)
        file.parent.mkdir(exist_ok=True)
        phases = Phases(file, deadline_s)
        phases.begin("start")
        return phases

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.begin(name)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def take(self) -> dict[str, float]:
        """Return what was collected and begin anew."""
        taken, self.seconds = self.seconds, {}
        return taken

    def begin(self, name: str) -> None:
        """Write the heartbeat: this phase begins now."""
        with self._lock:
            self._place = {"step": self.step, "phase": name, "since": time.time()}
            self.progress()
            self._write()

    def progress(self) -> None:
        """The phase gets on (a response has come, a tensor was sent): its deadline counts anew."""
        self._progress = time.monotonic()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Renew the file from a thread; after an end without an error it is gone."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(heartbeats.BEAT_S):
                with self._lock:
                    stuck_s = time.monotonic() - self._progress
                    if stuck_s > self.deadline_s:
                        self._place["stuck_s"] = round(stuck_s)
                        self._write()
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            os.utime(self.heartbeat)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self.heartbeat.unlink(missing_ok=True)

    def _write(self) -> None:
        partial = self.heartbeat.with_suffix(".partial")
        partial.write_text(json.dumps(self._place))
        os.replace(partial, self.heartbeat)
