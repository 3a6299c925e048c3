"""Lost servers are asked in the background whether they are back: a machine that is dead answers
nothing, not even that it refuses a connection, and no update of weights should wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aent.inference.client import EngineClient
from aent.inference.http import EngineError
from aent.runtime.log import log

POLL_S = 0.5  # between two questions to a server


@dataclass
class Watch:
    """A thread that asks while a server is missing. Each server is asked apart from the others, so
    that none waits for one that does not answer."""

    known: Callable[[], Iterable[EngineClient]]  # every server that has an address now
    used: Callable[[], set[str] | None]  # addresses of those in use; None: no server is missing
    _back: dict[str, EngineClient] = field(default_factory=dict, init=False)  # by address
    _running: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _told: str = field(default="", init=False)  # the last error of ``known`` that was logged

    def begin(self) -> None:
        """A server is missing from now on, if none was before."""
        with self._lock:
            if self._running:
                return
            self._running = True
        threading.Thread(target=lambda: asyncio.run(self._ask_all()), daemon=True).start()

    def found(self) -> list[EngineClient]:
        """Those that were lost and were back when they were last asked; does not wait."""
        return list(self._back.values())

    async def _ask_all(self) -> None:
        asked: dict[str, asyncio.Task[None]] = {}  # by address
        while True:
            with self._lock:
                if (used := self.used()) is None:
                    self._back.clear()
                    self._running = False
                    return
            missing = {c.url: c for c in self._all_known() if c.url not in used}
            for url in self._back.keys() - missing.keys():
                del self._back[url]
            for url, client in missing.items():
                if url not in asked or asked[url].done():
                    asked[url] = asyncio.create_task(self._ask(client))
            await asyncio.sleep(POLL_S)

    def _all_known(self) -> list[EngineClient]:
        try:
            return list(self.known())
        except (OSError, ValueError) as error:  # the run goes on with the other engines
            if str(error) != self._told:
                self._told = str(error)
                log.warning(f"aent: it is not known whether a lost engine is back: {error}")
            return []

    async def _ask(self, client: EngineClient) -> None:
        try:
            is_back = await client.is_back()
        except EngineError:  # no file is left for a connection
            is_back = False
        if is_back:
            self._back[client.url] = client
        else:
            self._back.pop(client.url, None)
