"""Work that rank 0 does alone while the other ranks wait: sampling, grading, MLflow.

The others never wait inside a collective of the training backend, whose time-out is minutes. They
poll the job's key-value store, and their deadline counts from rank 0's last sign of progress.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch.distributed as dist

from aent.runtime.timeline import Timeline

T = TypeVar("T")
P = TypeVar("P")
# Seconds between two polls of a waiting rank: a share of its wait, within bounds. A short wait ends
# soon after rank 0's work, and a long one asks rank 0's store seldom.
FIRST_POLL_S, POLL_S, POLL_SHARE = 0.002, 0.1, 0.03


class RankZeroFailed(RuntimeError):
    """Raised on the waiting ranks when rank 0's own work failed; the cause is in rank 0's log."""


@dataclass
class OnRankZero:
    """Rank 0 works, the other ranks wait, and all continue together."""

    store: dist.Store
    rank: int
    deadline_s: float  # without a sign of progress from rank 0
    on_progress: Callable[[], None]  # called on every rank at each sign of progress
    timeline: Timeline = field(default_factory=Timeline)  # this rank's: rank 0's work, and waits
    _turn: int = field(default=0, init=False)
    _ticks: int = field(default=0, init=False)

    def progress(self) -> None:
        """Rank 0 reports progress (a response finished, a tensor was sent)."""
        if self.rank == 0:
            self.store.add("aent/progress", 1)
            self.on_progress()

    def alone(self, what: str, work: Callable[[], T]) -> T | None:
        """Run ``work`` on rank 0 only; return its value there, None elsewhere.

        Raises:
            RankZeroFailed: on the waiting ranks, when ``work`` raised.
            TimeoutError: on the waiting ranks, ``deadline_s`` after rank 0's last progress.
        """
        self._turn += 1
        key = f"aent/turn/{self._turn}"
        if self.rank != 0:
            with self.timeline.span(f"waits: {what}", "rank 0's work"):
                self._wait(key, what)
            return None
        try:
            with self.timeline.span(what, "rank 0's work"):
                value = work()
        except BaseException as error:
            self.store.set(key, f"{type(error).__name__}: {error}"[:2000])
            raise
        self.progress()
        self.store.set(key, "")
        return value

    def tell(self, what: str, work: Callable[[], T]) -> T:
        """As ``alone``, but every rank gets the value, which must survive JSON."""
        key = f"aent/told/{self._turn + 1}"
        self.alone(what, lambda: self.store.set(key, json.dumps(work())))
        value: T = json.loads(self.store.get(key))
        return value

    def _wait(self, key: str, what: str) -> None:
        begin = last = time.monotonic()
        while not self.store.check([key]):
            ticks = self.store.add("aent/progress", 0)
            if ticks != self._ticks:
                self._ticks, last = ticks, time.monotonic()
                self.on_progress()
            if time.monotonic() - last > self.deadline_s:
                raise TimeoutError(
                    f"rank {self.rank} waited for rank 0 ({what}): no sign of progress "
                    f"for {self.deadline_s:.0f} s"
                )
            waited_s = time.monotonic() - begin
            time.sleep(min(POLL_S, max(FIRST_POLL_S, POLL_SHARE * waited_s)))
        error = self.store.get(key).decode()
        if error:
            raise RankZeroFailed(f"rank 0 failed ({what}): {error}")


class HeldByRankZero(Generic[P]):
    """An object that only rank 0 has; rank 0 uses it while the others wait."""

    def __init__(self, control: OnRankZero, what: str, build: Callable[[], P]) -> None:
        """Collective. Raises as ``OnRankZero.alone`` does."""
        self._control = control
        self._held: list[P] = []  # the object on rank 0, None elsewhere
        control.alone(what, lambda: self._held.append(build()))

    def alone(self, what: str, work: Callable[[P], T]) -> T | None:
        """``OnRankZero.alone``, with the object."""
        return self._control.alone(what, lambda: work(*self._held))

    def tell(self, what: str, work: Callable[[P], T]) -> T:
        """``OnRankZero.tell``, with the object."""
        return self._control.tell(what, lambda: work(*self._held))

    def meanwhile(self, work: Callable[[P], None]) -> None:
        """Run this on rank 0; the others continue and meet it at the next collective."""
        for held in self._held:
            work(held)
