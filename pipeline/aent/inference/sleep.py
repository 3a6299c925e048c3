"""Engines that leave their GPUs to the trainer for a while: vLLM's sleep mode (0.32.0).

An engine that sleeps has no key-value cache, and its weights in host memory (level 1) or nowhere
(level 2: they must be sent again). It wakes in two parts, so that new weights can come while the
memory of the cache is still free; with the second one it answers requests again. An engine on a CPU
accepts the same calls and keeps its memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from aent.inference.client import EngineClient

Level = Literal[1, 2]  # vLLM's
KEEP_WEIGHTS: Level = 1
DROP_WEIGHTS: Level = 2
Part = Literal["weights", "kv_cache"]
PARTS: tuple[Part, ...] = ("weights", "kv_cache")  # in the order in which they wake


async def fall_asleep(clients: Sequence[EngineClient], level: Level, timeout_s: float) -> None:
    """Have every engine sleep; requests that it still has are aborted.

    Raises EngineError if one does not, or does not answer within ``timeout_s``.
    """
    calls = [
        c.call("POST", "/sleep", params={"level": level, "mode": "abort"}, timeout_s=timeout_s)
        for c in clients
    ]
    await asyncio.gather(*calls)
    asked = [c.value("GET", "/is_sleeping", "is_sleeping", timeout_s=timeout_s) for c in clients]
    for client, sleeps in zip(clients, await asyncio.gather(*asked)):
        if sleeps is not True:
            raise client.error(" did not fall asleep when asked to")


async def wake(clients: Sequence[EngineClient], part: Part, timeout_s: float) -> None:
    """Have every engine take back the memory of this part: first the weights', then the cache's. It
    does nothing for a part that is awake.

    Raises EngineError if one is not awake after the second part, or does not answer within
    ``timeout_s``.
    """
    calls = [
        c.value("POST", "/wake_up", "status", params={"tags": part}, timeout_s=timeout_s)
        for c in clients
    ]
    for client, status in zip(clients, await asyncio.gather(*calls)):
        if part == "kv_cache" and status != "awake":
            raise client.error(f" is not awake after its last part ({part}): it says {status}")
