"""Where a rank is, and how long it takes: wall time per phase of a step, and a heartbeat file.

``run_dir/heartbeats/rank0.json`` is {"step": 3, "phase": "train", "since": seconds since 1970}. It
is replaced as a whole when a phase begins. A thread of the rank renews its time of modification,
whatever the rank waits for, and adds "stuck_s" if the phase has made no progress for longer than
its deadline. That time is by the rank's own monotonic clock, which stops while a machine is
suspended, so the watcher (``runtime.heartbeats``) need not compare clocks.

A heartbeat that cannot be written (a full disk, a file system that sometimes fails) is reported
once and retried: it does not end the rank.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from aent.runtime import heartbeats, timeline
from aent.runtime.log import log
from aent.runtime.timeline import Timeline


@dataclass
class Phases:
    """Seconds per named phase since the last ``take``."""

    heartbeat: Path  # the file; its folder exists
    deadline_s: float  # time without progress in a phase after which the rank is stuck
    step: int = 0  # of the phases
    timeline: Timeline = field(default_factory=Timeline)
    # a phase's range, for a profiler of this step
    around: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
    seconds: dict[str, float] = field(default_factory=dict)
    _place: dict[str, object] = field(default_factory=dict)  # the file's content
    _progress: float = field(default_factory=time.monotonic)  # time of the last progress
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _began: float = 0.0  # when the rank began; 0 after its first phase has begun
    _written: bool = False  # whether the file has the present phase
    _told: bool = False  # whether a failure to write was reported

    @staticmethod
    def of(run_dir: Path, rank: int, deadline_s: float) -> Phases:
        """The phases of a rank that begins."""
        file = heartbeats.file_of(run_dir, rank)
        phases = Phases(file, deadline_s, timeline=Timeline(timeline.file_of(run_dir, rank)))
        phases._began = time.time()
        phases.begin("start")
        return phases

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.begin(name)
        start = time.monotonic()
        try:
            with self.timeline.span(name, step=self.step), self.around(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def take(self) -> dict[str, float]:
        """Return what was collected and begin anew."""
        taken, self.seconds = self.seconds, {}
        self.timeline.write()
        return taken

    def begin(self, name: str) -> None:
        """Write the heartbeat: this phase begins now."""
        if self._began and name != "start":
            self.timeline.add("start", self._began, "phases")
            self._began = 0.0
        with self._lock:
            self._place = {"step": self.step, "phase": name, "since": time.time()}
            self.progress()
            self._written = False
            self._beat()

    def progress(self) -> None:
        """The phase made progress (a response came, a tensor was sent): its deadline restarts."""
        self._progress = time.monotonic()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Renew the file from a thread. If the block ends without an error, the file is removed (if
        it can be)."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(heartbeats.BEAT_S):
                with self._lock:
                    stuck_s = time.monotonic() - self._progress
                    if stuck_s > self.deadline_s:
                        self._place["stuck_s"] = round(stuck_s)
                        self._written = False
                    self._beat()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.timeline.write()
        try:
            self.heartbeat.unlink(missing_ok=True)
        except OSError as error:
            self._tell(error)

    def _beat(self) -> None:
        """Renew the file's time; write the file if it lacks the present phase. A rank that is stuck
        and cannot report it shows no sign of life either."""
        try:
            if not self._written:
                self.heartbeat.parent.mkdir(exist_ok=True)
                partial = self.heartbeat.with_suffix(".partial")
                partial.write_text(json.dumps(self._place))
                os.replace(partial, self.heartbeat)
                self._written = True
            os.utime(self.heartbeat)
        except OSError as error:
            self._tell(error)
            if "stuck_s" not in self._place:
                self._renew_only()

    def _renew_only(self) -> None:
        """Renew the file of an earlier phase, as a sign of life; create it if it is gone."""
        try:
            self.heartbeat.touch()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            log.warning(f"aent: {self.heartbeat}: {error} (the rank continues)")
