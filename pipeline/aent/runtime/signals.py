"""SIGUSR1 asks a run to write a checkpoint at its next step boundary and to stop.

The launcher passes it on to every rank; on a cluster the batch script's ``srun`` does. A rank only
records it; the ranks agree at the boundary (``Run.checkpoint``).
"""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOP = signal.SIGUSR1
STACKS = signal.SIGUSR2  # asks a rank to write the stacks of its threads to its log
CHECKPOINTED = 85  # exit code, of ranks and launcher: stopped as asked, may be resumed


@dataclass
class StopRequest:
    """Whether this process was asked to stop."""

    received: bool = False


def listen() -> StopRequest:
    """Record the signal from now on, including one that came while it was blocked."""
    request = StopRequest()

    def note(number: int, frame: object) -> None:
        request.received = True

    faulthandler.register(STACKS)
    signal.signal(STOP, note)
    signal.siginterrupt(STOP, False)  # so that system calls of libraries are not interrupted
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {STOP})
    return request


@contextmanager
def held() -> Iterator[None]:
    """Block the signal, so that processes started within do not die from it before they
    ``listen``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {STOP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
