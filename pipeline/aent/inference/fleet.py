"""Several vLLM servers, used as one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from aent.inference.client import EngineClient
from aent.inference.completion import Completion, GenerationRequest
from aent.inference.flight import EngineFlight, Flight
from aent.inference.http import EngineError
from aent.inference.load import Load
from aent.runtime.log import log
from aent.runtime.timeline import Timeline


@dataclass
class Fleet:
    """Several servers with the same weights, used as one.

    A request is sent again where its connection breaks or its server is too busy. A server that is
    lost (it is not healthy after that, or writes no token for ``progress_timeout_s``, twice) leaves
    ``clients``, and its requests go to the others.
    """

    clients: list[EngineClient]
    min_engines: int | None = None  # with fewer it fails; None: with any lost
    on_loss: Callable[[EngineClient], None] = lambda client: None
    timeline: Timeline = field(default_factory=Timeline)  # of its requests
    load: Load | None = None  # what servers say of themselves meanwhile; None: nobody asks
    busy_s: float = 0.0  # in which a server had requests to answer, summed over servers
    size: int = field(init=False)  # with none lost
    # by address: the weight version with which it was taken back last
    _back: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.size = len(self.clients)

    def generate_sync(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """``generate`` for callers without an event loop."""
        return asyncio.run(self.generate(requests, on_progress, on_completion))

    async def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Have every sample written by the server with the fewest requests in flight, samples of
        one prompt by the same one unless it is much fuller.

        Returns completions in the order of the requests; calls ``on_progress``, and
        ``on_completion`` with the request's place, at each that ends (``on_progress`` also where
        servers write tokens and none ends for long).
        Raises EngineError, having cancelled the others: that of a healthy server at once, that of
        a lost one if fewer than ``min_engines`` are left.
        """
        progress = on_progress or (lambda: None)
        engines = [EngineFlight(client) for client in self.clients]
        waiting = deque(enumerate(requests))
        flight = Flight(self.lose, waiting, engines, progress, self.timeline)
        done: dict[int, Completion] = {}
        watch = None
        if self.load is not None:
            watch = asyncio.create_task(self.load.watch(self.clients))
        try:
            while len(done) < len(requests):
                flight.send()
                for index, completion in await flight.land():
                    done[index] = completion
                    progress()
                    if on_completion is not None:
                        on_completion(index, completion)
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
            for engine in flight.engines:
                flight.stop(engine)
            await asyncio.gather(*flight.cancelled, return_exceptions=True)
            self.busy_s += flight.busy_s
        return [done[i] for i in range(len(requests))]

    async def readmit(self, known: Callable[[], Iterable[EngineClient]], version: int) -> list[str]:
        """Have servers that were lost, and are healthy, take part again from the update to weight
        ``version`` on; return what to tell. Each once for one version: one that is lost again
        before the update has ended would keep it from ever ending.

        known: every server that has an address now; asked where one is missing.
        """
        if len(self.clients) == self.size:
            return []
        told = []
        there = {client.url for client in self.clients}
        for client in known():
            if client.url in there or not await client.is_healthy():
                continue
            if self._back.get(client.url) == version:
                what = "was lost again, and takes part from the next weight version on"
            else:
                self._back[client.url] = version
                self.clients.append(client)
                what = "takes part from here on"
            told.append(f"aent: engine {client.url} {what}")
        return told

    async def drop_lost(self, error: EngineError) -> bool:
        """Go on without the servers that are not healthy, after one has failed; return whether
        there are any. Raises ``error`` if too few are left."""
        healthy = await asyncio.gather(*(c.is_healthy() for c in self.clients))
        lost = [c for c, well in zip(self.clients, healthy) if not well]
        for client in lost:
            self.lose(client, error)
        return bool(lost)

    def lose(self, client: EngineClient, error: EngineError) -> None:
        """Go on without this server; raise ``error`` if too few are left."""
        self.clients.remove(client)
        self.on_loss(client)
        least = len(self.clients) + 1 if self.min_engines is None else self.min_engines
        if len(self.clients) < least:
            if self.min_engines is None:
                raise error
            raise EngineError(
                f"{len(self.clients)} engines are left, rollout.min_engines={least}: {error}"
            )
        log.warning(
            f"aent: engine {client.url} is lost, {len(self.clients)} are left, which take its "
            f"requests: {error}"
        )
