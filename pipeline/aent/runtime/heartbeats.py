"""Heartbeats: which ranks are alive, and in which phase each one is.

A rank's heartbeat is the file ``RUN_DIR/heartbeats/rankN.json``, which the rank writes and one of
its threads renews (``phases``). A process that is stopped, or on a dead node, renews nothing. If a
rank's work hangs, the file says for how long it has made no progress.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from aent.runtime.log import log

BEAT_S = 2.0
LOOK_S = 3 * BEAT_S  # seconds between two looks of a ``Watch``
BLIND_S = 600.0  # seconds without a successful look, after which a ``Watch`` says so
CLOCK_FILE = "clock"  # the watcher's own file, so that times of the same file system are compared


def file_of(run_dir: Path, rank: int) -> Path:
    """A rank's heartbeat."""
    return run_dir / "heartbeats" / f"rank{rank}.json"


def clear(run_dir: Path) -> None:
    """Forget the ranks of an earlier start."""
    for file in (run_dir / "heartbeats").glob("rank*.json"):
        file.unlink()


def places(run_dir: Path) -> dict[int, str]:
    """The phase of each rank that has not succeeded, in words; empty if none has begun, or if the
    files cannot be read."""
    try:
        beats = _beats(run_dir, _clock(run_dir))
    except OSError:
        return {}
    told = {}
    for rank, (silent_s, beat) in beats.items():
        told[rank] = f"step {beat['step']}, {beat['phase']} for {time.time() - beat['since']:.0f} s"
        life = f"last sign of life {silent_s:.0f} s ago"
        if silent_s > 3 * BEAT_S:
            life = f"no sign of life for {silent_s:.0f} s"
        told[rank] += f", {life}"
    return told


def silence_of(run_dir: Path) -> float | None:
    """Seconds since the last sign of life of any rank; None if none has begun or none is left."""
    try:
        beats = _beats(run_dir, _clock(run_dir))
    except OSError:
        return None
    return min((silent for silent, _ in beats.values()), default=None)


@dataclass
class Watch:
    """Looks for ranks that hang: in the launcher on one machine, else in a task of the job.

    A look that fails (ESTALE, EIO) says nothing about the ranks: it is reported on stderr, and the
    next one counts.
    """

    run_dir: Path
    silence_s: float
    _before: set[int] = field(default_factory=set)  # silent at the last look
    _seen: float = field(default_factory=time.monotonic)  # time of the last successful look
    _told: bool = False  # whether failing looks were reported

    def look(self) -> str | None:
        """A sentence that names ranks that report that they are stuck, and ranks without a sign of
        life for ``silence_s`` seconds at this look and at the one before. (One look is not enough:
        on a machine that wakes from suspension all ranks are silent.)

        Looks should be more than ``BEAT_S`` apart.
        """
        try:
            beats = _beats(self.run_dir, _clock(self.run_dir))
        except OSError as error:
            self._say_blind(error)
            return None
        self._seen, self._told = time.monotonic(), False
        return self._judge(beats)

    def _say_blind(self, error: OSError) -> None:
        if not self._told and time.monotonic() - self._seen > BLIND_S:
            self._told = True
            log.warning(
                f"aent: for {time.monotonic() - self._seen:.0f} s the heartbeats of the ranks "
                f"could not be read ({error}); the run continues"
            )

    def _judge(self, beats: dict[int, tuple[float, dict]]) -> str | None:
        silent, told = set(), []
        for rank, (silent_s, beat) in beats.items():
            place = f"(step {beat['step']}, phase {beat['phase']})"
            if silent_s > self.silence_s:
                silent.add(rank)
                if rank in self._before:
                    told.append(f"rank {rank} shows no sign of life for {silent_s:.0f} s {place}")
            elif "stuck_s" in beat:
                told.append(
                    f"rank {rank} has made no progress for {beat['stuck_s']:.0f} s {place}, "
                    f"which is "
                    "more than trainer.phase_timeout_s"
                )
        self._before = silent
        return "; ".join(told) or None


def _clock(run_dir: Path) -> float:
    file = run_dir / "heartbeats" / CLOCK_FILE
    file.parent.mkdir(exist_ok=True)
    file.touch()
    return file.stat().st_mtime


def _beats(run_dir: Path, now: float) -> dict[int, tuple[float, dict]]:
    """{rank: (seconds since its last sign, its file's content)}. Raises OSError."""
    found = {}
    for file in (run_dir / "heartbeats").glob("rank*.json"):
        try:
            silent_s, text = now - file.stat().st_mtime, file.read_text()
        except FileNotFoundError:  # the rank has just ended
            continue
        try:
            beat = json.loads(text)
        except ValueError:  # an empty file, written on a full disk: only a sign of life
            beat = {"step": "?", "phase": "?", "since": now}
        found[int(file.stem.removeprefix("rank"))] = (silent_s, beat)
    return dict(sorted(found.items()))
