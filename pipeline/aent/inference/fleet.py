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
from aent.inference.lost import Watch
from aent.runtime.log import log
from aent.runtime.timeline import Timeline

Submit = Callable[[GenerationRequest], asyncio.Future[Completion]]


@dataclass
class Fleet:
    """Several servers with the same weights, used as one; several threads may use it, each with its
    own event loop.

    A request is sent again if its connection breaks or its server is too busy. A server is lost if
    it is not healthy after that, or writes no token for ``progress_timeout_s``, twice: it leaves
    ``clients``, and the others get its requests.
    """

    clients: list[EngineClient]
    min_engines: int | None = None  # with fewer it fails; None: with any lost
    on_loss: Callable[[EngineClient], None] = lambda client: None
    # every server that has an address now, called by a thread; None: no lost server comes back
    known: Callable[[], Iterable[EngineClient]] | None = None
    timeline: Timeline = field(default_factory=Timeline)  # of its requests
    load: Load | None = None  # the servers' own measurements meanwhile; None: not needed
    clock: Clock = field(default_factory=Clock)
    size: int = field(init=False)  # number of servers before any was lost
    # by address: the weight version at which it was last taken back
    _back: dict[str, int] = field(default_factory=dict, init=False)
    # guards ``clients``: an update of weights needs the same clients from its start to its end
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _watch: Watch | None = field(default=None, init=False)  # of lost servers

    def __post_init__(self) -> None:
        self.size = len(self.clients)
        if self.known is not None:
            self._watch = Watch(self.known, self._used)

    def _used(self) -> set[str] | None:
        clients = list(self.clients)
        return None if len(clients) == self.size else {client.url for client in clients}

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
        """Get every sample, in the order of the requests. Raises as ``open`` does."""
        async with self.open(on_progress) as submit:
            return await asyncio.gather(*map(submit, requests))

    @asynccontextmanager
    async def open(self, on_progress: Callable[[], None] | None = None) -> AsyncIterator[Submit]:
        """A function that sends a request to the server with the fewest requests in flight; samples
        of one prompt go to the same server unless it is much fuller. Samples under way at the end
        of the block are cancelled.

        ``on_progress`` is called when one ends (also if servers write tokens but none ends for a
        long time). If one fails, all samples fail with its EngineError: at once if its server is
        healthy, and if it is lost when fewer than ``min_engines`` are left.
        """
        progress = on_progress or (lambda: None)
        flight = Flight(self.lose, deque(), [], progress, self.timeline, self.clock)
        with self._lock:  # not a server that still has to get the others' weights
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
                    # without those lost in the last update, with those taken back in it
                    flight.join(self.clients)
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
        """The servers get new weights inside this block. Silence does not count, and a server that
        another thread finds lost is dropped after it."""
        with self._lock, self.clock.paused():
            yield

    async def readmit(self, version: int) -> list[str]:
        """Take back servers that were lost and are healthy, from the update to weight ``version``
        on; return lines for the log. Each only once per version: a server that is lost again and
        again would keep the update from ending.

        A server that has not been found back in the background is not asked here.
        """
        if self._watch is None or (used := self._used()) is None:
            return []
        told = []
        for client in self._watch.found():
            if client.url in used or not await client.is_back():  # lost again meanwhile
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
        """Drop the servers that are not healthy, after one has failed; return whether there are
        any. Raises ``error`` if too few are left."""
        clients = list(self.clients)  # another thread may drop one meanwhile
        healthy = await asyncio.gather(*(c.is_healthy() for c in clients))
        lost = [c for c, well in zip(clients, healthy) if not well]
        for client in lost:
            self.lose(client, error)
        return bool(lost)

    def lose(self, client: EngineClient, error: EngineError) -> None:
        """Drop this server; raise ``error`` if too few are left."""
        with self._lock:
            self._lose(client, error)

    def _lose(self, client: EngineClient, error: EngineError) -> None:
        if client not in self.clients:  # another thread has dropped it
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
        if self._watch is not None:
            self._watch.begin()
        log.warning(
            f"aent: engine {client.url} is lost, {len(self.clients)} are left, which take its "
            f"requests: {error}"
        )
