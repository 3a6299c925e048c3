"""Waiting for our end of a transfer and for the engines' calls at the same time: an engine's own
report of a failure is raised rather than its consequence here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from aent.inference.http import EngineError
from aent.weights.transport import Broadcast

POLL_S = 0.002  # between two checks of broadcasts under way
LAST_WORDS_S = 5.0  # time for an engine to report why a broadcast broke
BROKE = "a broadcast of weights broke"

T = TypeVar("T")


async def first_failure(work: asyncio.Future[T], calls: Sequence[asyncio.Future], broken: str) -> T:
    """The result of ``work``, or the error of a call that fails first. ``broken``: the message if
    ``work`` itself fails."""
    running = set(calls)
    while not work.done():
        done, _ = await asyncio.wait({work, *running}, return_when=asyncio.FIRST_COMPLETED)
        for call in done - {work}:
            running.discard(call)
            call.result()
    try:
        return work.result()
    except RuntimeError as error:
        raise await broke_of(error, calls, broken) from error


async def finished(work: Broadcast, calls: Sequence[asyncio.Future]) -> None:
    """Wait for a broadcast; raises the engine's own error if there is one."""
    while not work.is_completed():
        for call in calls:
            if call.done():
                call.result()
        await asyncio.sleep(POLL_S)
    try:
        work.wait()
    except RuntimeError as error:
        raise await broke_of(error, calls, BROKE) from error


async def broke_of(error: RuntimeError, calls: Sequence[asyncio.Future], what: str) -> EngineError:
    """The error to raise for a failure of our end; raises the engine's own error instead if there
    is one."""
    done, _ = await asyncio.wait(calls, timeout=LAST_WORDS_S, return_when=asyncio.FIRST_EXCEPTION)
    for call in calls:  # in their order: several may have failed
        if call in done:
            call.result()
    return EngineError(f"{what}: {error}")
