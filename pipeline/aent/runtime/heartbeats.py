"""Signs of life: which ranks still live, and where each one is.

A rank's heartbeat is the file ``RUN_DIR/heartbeats/rankN.json`` (``phases``), whose time of
modification a thread of the rank renews, whatever the rank waits for. A process that is stopped, or
on a dead node, renews nothing; one whose work hangs does, and is found by the deadline of whatever
it waits for.
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

BEAT_S = 2.0
LOOK_S = 3 * BEAT_S  # between two looks of a ``Watch``
CLOCK_FILE = "clock"  # the watcher's own sign: times of one file system can be compared


@contextmanager
def beating(run_dir: Path, rank: int) -> Iterator[None]:
    """Renew this rank's file, once it is there, from a thread; after an end without an error the
    file is gone."""
    file = run_dir / "heartbeats" / f"rank{rank}.json"
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with contextlib.suppress(FileNotFoundError):
                os.utime(file)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    file.unlink(missing_ok=True)


def clear(run_dir: Path) -> None:
    """Forget the ranks of an earlier start."""
    for file in (run_dir / "heartbeats").glob("rank*.json"):
        file.unlink()


def places(run_dir: Path) -> dict[int, str]:
    """Where each rank that has not ended well is, in words; empty where none has begun."""
    now = _clock(run_dir)
    told = {}
    for rank, (silent_s, beat) in _beats(run_dir, now).items():
        told[rank] = f"step {beat['step']}, {beat['phase']} for {time.time() - beat['since']:.0f} s"
        if silent_s > 3 * BEAT_S:
            told[rank] += f", no sign of life for {silent_s:.0f} s"
    return told


@dataclass
class Watch:
    """Looks for ranks that hang; beside them, on one machine in the launcher, else in a task."""

    run_dir: Path
    silence_s: float
    _before: set[int] = field(default_factory=set)  # silent at the last look

    def look(self) -> str | None:
        """A sentence that names the ranks without a sign of life for ``silence_s`` seconds, at this
        look and at the one before: on a machine that was suspended all are silent as it wakes up.

        Looks should be more than ``BEAT_S`` apart.
        """
        now = _clock(self.run_dir)
        silent = {
            rank: f"rank {rank} shows no sign of life for {silent_s:.0f} s "
            f"(step {beat['step']}, phase {beat['phase']})"
            for rank, (silent_s, beat) in _beats(self.run_dir, now).items()
            if silent_s > self.silence_s
        }
        told = [words for rank, words in silent.items() if rank in self._before]
        self._before = set(silent)
        return "; ".join(told) or None


def _clock(run_dir: Path) -> float:
    file = run_dir / "heartbeats" / CLOCK_FILE
    file.parent.mkdir(exist_ok=True)
    file.touch()
    return file.stat().st_mtime


def _beats(run_dir: Path, now: float) -> dict[int, tuple[float, dict]]:
    """{rank: (seconds since its last sign, its file's content)}."""
    found = {}
    for file in (run_dir / "heartbeats").glob("rank*.json"):
        try:
            silent_s, beat = now - file.stat().st_mtime, json.loads(file.read_text())
        except FileNotFoundError:  # it has just ended
            continue
        found[int(file.stem.removeprefix("rank"))] = (silent_s, beat)
    return dict(sorted(found.items()))
