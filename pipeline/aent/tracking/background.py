"""Work beside training that may fail and is retried until it succeeds."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from aent.recipe.redact import redacted
from aent.runtime.log import log

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0  # between attempts, doubled each time
LAST_RETRIES_S = 1.0  # between attempts when nothing new will come
WAIT_S = 10.0  # between signs of life of whoever waits for the end


class Background:
    """A thread that does ``work`` whenever it is woken, and retries it after a failure.

    work: returns whether it succeeded. After ``end`` the thread ends with the next success.
    """

    def __init__(self, name: str, work: Callable[[], bool]) -> None:
        self._work = work
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether nothing new will come."""
        return self._ended.is_set()

    def wake(self) -> None:
        """Wake the thread: there is work."""
        self._wake.set()

    def end(self) -> None:
        """Nothing new will come."""
        self._ended.set()
        self._wake.set()

    def join(self, timeout_s: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Wait for the thread's end, and call ``meanwhile`` now and then; return whether it
        ended."""
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            meanwhile()
            self._thread.join(min(left, WAIT_S))
        return not self._thread.is_alive()

    def _run(self) -> None:
        delay = 0.0  # until the next attempt; 0: nothing waits
        attempt_at = -math.inf
        while True:
            self._wake.wait(delay or None)
            self._wake.clear()
            ended = self.ended
            if time.monotonic() < attempt_at and not (ended and delay > LAST_RETRIES_S):
                continue
            if self._has_worked():
                delay = 0.0
                if ended:
                    return
            elif ended:
                delay = LAST_RETRIES_S
            else:
                delay = min(max(2 * delay, FIRST_RETRY_S), LONGEST_RETRY_S)
            attempt_at = time.monotonic() + delay

    def _has_worked(self) -> bool:
        """Whether ``work`` succeeded. If it raises (a file cannot be read), that is a failure as
        well: without the thread nothing would be sent any more, and nobody would notice."""
        try:
            return self._work()
        except Exception as error:
            log.warning(f"aent: {self._thread.name}: {redacted(str(error))} (it is tried again)")
            return False


def within(seconds: float, what: str, work: Callable[[], None]) -> None:
    """Do ``work`` in a thread of its own, and leave the thread behind if it takes longer: a thread
    that hangs in a library cannot be ended.

    Raises TimeoutError in that case, else what ``work`` raises.
    """
    failed: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"{what} did not end within {seconds:g} s")
    if failed:
        raise failed[0]
