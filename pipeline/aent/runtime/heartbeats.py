"""Signs of life: which ranks still live, and where each one is.

A rank's heartbeat is the file ``RUN_DIR/heartbeats/rankN.json``, which the rank writes and a thread
of it renews (``phases``). A process that is stopped, or on a dead node, renews nothing; one whose
work hangs says there for how long it has got no further.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from aent.runtime.log import log

BEAT_S = 2.0
LOOK_S = 3 * BEAT_S  # between two looks of a ``Watch``
BLIND_S = 600.0  # without being able to look, after which a ``Watch`` says so
CLOCK_FILE = "clock"  # the watcher's own sign: times of one file system can be compared


def file_of(run_dir: Path, rank: int) -> Path:
    """A rank's heartbeat."""
    return run_dir / "heartbeats" / f"rank{rank}.json"


def clear(run_dir: Path) -> None:
    """Forget the ranks of an earlier start."""
    for file in (run_dir / "heartbeats").glob("rank*.json"):
        file.unlink()


def places(run_dir: Path) -> dict[int, str]:
    """Where each rank that has not ended well is, in words; empty where none has begun, or where
    the file system does not say."""
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
    """Seconds since the last sign of life of any rank; None where none has begun or is left."""
    try:
        beats = _beats(run_dir, _clock(run_dir))
    except OSError:
        return None
    return min((silent for silent, _ in beats.values()), default=None)


@dataclass
class Watch:
    """Looks for ranks that hang; beside them, on one machine in the launcher, else in a task.

    A look that fails (ESTALE, EIO) says nothing of the ranks: it is told on stderr, and the next
    one counts.
    """

    run_dir: Path
    silence_s: float
    _before: set[int] = field(default_factory=set)  # silent at the last look
    _seen: float = field(default_factory=time.monotonic)  # when a look went well
    _told: bool = False  # that looks fail

    def look(self) -> str | None:
        """A sentence that names the ranks that say they are stuck, and those without a sign of
        life for ``silence_s`` seconds at this look and at the one before: on a machine that was
        suspended all are silent as it wakes up.

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
                f"aent: for {time.monotonic() - self._seen:.0f} s nobody has seen whether the "
                f"ranks live ({error}); the run goes on"
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
                    f"rank {rank} has got no further for {beat['stuck_s']:.0f} s {place}, which is "
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
        except FileNotFoundError:  # it has just ended
            continue
        try:
            beat = json.loads(text)
        except ValueError:  # made anew on a full disk: a sign of life, and no more
            beat = {"step": "?", "phase": "?", "since": now}
        found[int(file.stem.removeprefix("rank"))] = (silent_s, beat)
    return dict(sorted(found.items()))
