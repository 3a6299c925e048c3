"""Where a rank is, and how long it takes: wall time per phase of a step, and a heartbeat file.

``run_dir/heartbeats/rank0.json`` says {"step": 3, "phase": "train", "since": seconds since 1970};
it is written when a phase begins, and whole at any time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Phases:
    """Seconds per named phase since the last ``take``."""

    heartbeat: Path  # the file; its folder exists
    step: int = 0  # that the phases belong to
    seconds: dict[str, float] = field(default_factory=dict)

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
        partial = self.heartbeat.with_suffix(".partial")
        partial.write_text(json.dumps({"step": self.step, "phase": name, "since": time.time()}))
        os.replace(partial, self.heartbeat)
