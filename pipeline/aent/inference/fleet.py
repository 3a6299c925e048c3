"""Several vLLM servers, used as one."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from aent.inference.client import EngineClient
from aent.inference.clock import Clock
from aent.inference.completion import Completion, GenerationRequest
from aent.inference.flight import Flight
from aent.inference.http import EngineError
from aent.inference.load import Load
from aent.runtime.log import log
from aent.runtime.timeline import Timeline

Submit = Callable[[GenerationRequest], asyncio.Future[Completion]]


@dataclass
class Fleet:
    """Several servers with the same weights, used as one; by several threads, each its event loop.

    A request is sent again where its connection breaks or its server is too busy. A server that is
    lost (it is not healthy after that, or writes no token for ``progress_timeout_s``, twice) leaves
    ``clients``, and its requests go to the others.
    """

    clients: list[EngineClient]
    min_engines: int | None = None  # with fewer it fails; None: with any lost
    on_loss: Callable[[EngineClient], None] = lambda client: None
    timeline: Timeline = field(default_factory=Timeline)  # of its requests
    load: Load | None = None  # what servers say of themselves meanwhile; None: nobody asks
    clock: Clock = field(default_factory=Clock)
    size: int = field(init=False)  # with none lost
    # by address: the weight version with which it was taken back last
    _back: dict[str, int] = field(default_factory=dict, init=False)
    # of ``clients``: an update of weights goes on with those that it began with
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def __post_init__(self) -> None:
        self.size = len(self.clients)

    def generate_sync(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
    ) -> list[Completion]:
        """``generate`` for callers without an event loop."""
        return asyncio.run(self.generate(requests, on_progress))

    async def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
    ) -> list[Completion]:
        """Have every sample written; in the order of the requests. Raises as ``open`` does."""
        async with self.open(on_progress) as submit:
            return await asyncio.gather(*map(submit, requests))

    @asynccontextmanager
    async def open(self, on_progress: Callable[[], None] | None = None) -> AsyncIterator[Submit]:
        """A function that has a sample written by the server with the fewest requests in flight,
        samples of one prompt by the same one unless it is much fuller; those that are under way at
        the end of the block are cancelled.

        ``on_progress`` is called at each that ends (also where servers write tokens and none ends
        for long). Samples fail by EngineError, all of them: that of a healthy server at once, that
        of a lost one if fewer than ``min_engines`` are left.
        """
        progress = on_progress or (lambda: None)
        flight = Flight(self.lose, deque(), [], progress, self.timeline, self.clock)
        with self._lock:  # not one that has yet to get the others' weights
            flight.join(self.clients)
        under_way: dict[int, asyncio.Future[Completion]] = {}
        numbers = itertools.count()
        failed: list[BaseException] = []

        def submit(request: GenerationRequest) -> asyncio.Future[Completion]:
            future = asyncio.get_running_loop().create_future()
            if failed:
                future.set_exception(failed[0])
                return future
            number = next(numbers)
            under_way[number] = future
            flight.add((number, request))
            return future

        async def carry_out() -> None:
            while True:
                if self._lock.acquire(blocking=False):  # else an update is under way
                    flight.join(self.clients)  # not those lost in the last one; those back with it
                    self._lock.release()
                flight.send()
                for number, completion in await flight.land():
                    progress()
                    if not (future := under_way.pop(number)).done():
                        future.set_result(completion)

        def fail(ended: asyncio.Task[None]) -> None:
            error = None if ended.cancelled() else ended.exception()
            if error is not None:
                failed.append(error)
            for future in under_way.values():
                if error is None:
                    future.cancel()
                elif not future.done():
                    future.set_exception(error)
                    future.exception()  # others may have raised it already

        working = [asyncio.create_task(carry_out())]
        working[0].add_done_callback(fail)
        if self.load is not None:
            working.append(asyncio.create_task(self.load.watch(self.clients)))
        try:
            yield submit
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            for engine in flight.engines:
                flight.stop(engine)
            await asyncio.gather(*flight.cancelled, return_exceptions=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The servers get other weights meanwhile. Silence is none, and a server that another
        thread has to give up is given up afterwards."""
        with self._lock, self.clock.paused():
            yield

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
        with self._lock:
            self._lose(client, error)

    def _lose(self, client: EngineClient, error: EngineError) -> None:
        if client not in self.clients:  # another thread has given it up
            return
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
