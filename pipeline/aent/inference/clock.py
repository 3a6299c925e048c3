"""The time in which engines may work: it stands still while they are paused for new weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Of a fleet; for any thread. Seconds, from an arbitrary beginning."""

    _paused_s: float = 0.0  # in pauses that are over
    _paused_at: float | None = None  # when the present one began
    _busy_s: float = 0.0
    _since: dict[str, float] = field(default_factory=dict)  # engines that are busy, by address
    _users: dict[str, int] = field(default_factory=dict)  # who keep them so
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def now(self) -> float:
        with self._lock:
            real = time.monotonic() if self._paused_at is None else self._paused_at
            return real - self._paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It stands meanwhile."""
        with self._lock:
            self._paused_at = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._paused_s += time.monotonic() - self._paused_at
                self._paused_at = None

    def begin(self, url: str) -> None:
        """Somebody has requests at this engine from now on, besides others that may have some."""
        with self._lock:
            if not self._users.get(url):
                self._since[url] = self.now()
            self._users[url] = self._users.get(url, 0) + 1

    def end(self, url: str) -> None:
        """Of what ``begin`` began."""
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
