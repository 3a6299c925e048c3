"""Waiting for our end of a transfer and for the engines' calls at once: what an engine says of its
failure comes before what it broke here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from aent.inference.http import EngineError
from aent.weights.transport import Broadcast

POLL_S = 0.002  # between two looks at broadcasts under way
LAST_WORDS_S = 5.0  # for an engine to say why a broadcast broke
BROKE = "a broadcast of weights broke"

T = TypeVar("T")


async def first_failure(work: asyncio.Future[T], calls: Sequence[asyncio.Future], broken: str) -> T:
    """The result of ``work``; the error of a call that fails before it has one. ``broken``: what is
    said where ``work`` itself fails."""
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
    """Wait for a broadcast; an engine's own error, where there is one, is the one raised."""
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
    """What our end's failure is to be called; raises an engine's own error where it has one to
    tell."""
    done, _ = await asyncio.wait(calls, timeout=LAST_WORDS_S, return_when=asyncio.FIRST_EXCEPTION)
    for call in calls:  # in their order: several may have failed
        if call in done:
            call.result()
    return EngineError(f"{what}: {error}")
