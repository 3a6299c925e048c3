"""The time in which engines can work: the clock stops while they are paused for new weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """A fleet's clock, for any thread. Seconds, from an arbitrary start."""

    _paused_s: float = 0.0  # in past pauses
    _paused_at: float | None = None  # start of the present pause
    _busy_s: float = 0.0
    _since: dict[str, float] = field(default_factory=dict)  # when a busy engine began, by address
    _users: dict[str, int] = field(default_factory=dict)  # callers with requests, by address
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def now(self) -> float:
        with self._lock:
            real = time.monotonic() if self._paused_at is None else self._paused_at
            return real - self._paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stops inside this block."""
        with self._lock:
            self._paused_at = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._paused_s += time.monotonic() - self._paused_at
                self._paused_at = None

    def begin(self, url: str) -> None:
        """A caller has requests at this engine from now on; others may have some too."""
        with self._lock:
            if not self._users.get(url):
                self._since[url] = self.now()
            self._users[url] = self._users.get(url, 0) + 1

    def end(self, url: str) -> None:
        """The caller of ``begin`` has no more requests."""
        with self._lock:
            self._users[url] -= 1
            if not self._users[url]:
                self._busy_s += self.now() - self._since.pop(url)

    def take_busy_s(self) -> float:
        """Seconds since the last call in which an engine had requests, summed over engines."""
        with self._lock:
            now = self.now()
            taken = self._busy_s + sum(now - since for since in self._since.values())
            self._busy_s, self._since = 0.0, dict.fromkeys(self._since, now)
            return taken
