"""The requests of one ``Fleet.generate``, from start to end."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aent.inference.clock import Clock
from aent.inference.completion import Completion, GenerationRequest
from aent.inference.http import EngineError, RefusedError, TransientError
from aent.runtime.log import log
from aent.runtime.timeline import ENGINE, Timeline

if TYPE_CHECKING:
    from aent.inference.client import EngineClient

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0)  # longest delays before a request is sent again
# a server is much fuller than another that has this many requests fewer (or four fifths of its own)
FULLER = 16
PROMPT_END = 256  # tokens that identify a prompt, together with its length
SHORTEST_WAIT_S = 0.01  # a stopped clock (``Clock.paused``) would be polled without a pause
LOOKS = 4  # checks of an engine's tokens in ``progress_timeout_s`` without a finished response

Item = tuple[int, GenerationRequest]


@dataclass(eq=False)
class EngineFlight:
    """A server during one ``generate``."""

    client: EngineClient
    in_flight: dict[asyncio.Task[Completion], Item] = field(default_factory=dict)
    progress: float = 0.0  # last time that it was known to write tokens, or got its first request
    looked: float = 0.0  # last time that its tokens were counted
    tokens: float | None = None  # their number then; None: not known
    sent_again: bool = False  # whether everything in flight was, since it last wrote tokens
    retries: int = 0

    @property
    def due(self) -> float:
        """When it must be checked unless a response ends before."""
        return max(self.progress, self.looked) + self.client.progress_timeout_s / LOOKS

    def advance(self, now: float) -> None:
        """It has written tokens."""
        self.progress, self.sent_again = now, False


@dataclass
class Flight:
    """The requests of one ``generate``, and the servers that are not lost."""

    lose: Callable[[EngineClient, EngineError], None]  # drop a server, or raise
    waiting: deque[Item]
    engines: list[EngineFlight]
    on_progress: Callable[[], None]
    timeline: Timeline = field(default_factory=Timeline)
    clock: Clock = field(default_factory=Clock)  # measures a server's silence
    cancelled: list[asyncio.Task[Completion]] = field(default_factory=list)
    _owners: dict[asyncio.Task[Completion], EngineFlight] = field(default_factory=dict)
    _homes: dict[int, EngineFlight] = field(default_factory=dict)  # by prompt: who had it last
    _ended: list[asyncio.Task[Completion]] = field(default_factory=list)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)  # a request ended or was added
    _jitter: random.Random = field(default_factory=random.Random)

    def join(self, clients: Sequence[EngineClient]) -> None:
        """Use these servers from now on, and no others; requests that others have not answered wait
        again."""
        for engine in [e for e in self.engines if e.client not in clients]:
            self.engines.remove(engine)  # another caller has dropped it
            self.waiting.extendleft(reversed(self.stop(engine)))
        known = [engine.client for engine in self.engines]
        self.engines += [EngineFlight(client) for client in clients if client not in known]

    def add(self, item: Item) -> None:
        """Carry out this request too."""
        self.waiting.append(item)
        self._woken.set()

    def send(self) -> None:
        """Send waiting requests, within the servers' ``concurrency``."""
        now = self.clock.now()
        while self.waiting:
            free = [e for e in self.engines if len(e.in_flight) < e.client.concurrency]
            if not free:
                return
            engine = self._choose(free, self.waiting[0][1])
            item = self.waiting.popleft()
            if not engine.in_flight:
                engine.progress = engine.looked = now
                self.clock.begin(engine.client.url)
            task = asyncio.create_task(self._complete(engine, item[1]))
            engine.in_flight[task], self._owners[task] = item, engine
            task.add_done_callback(self._note_end)

    def _choose(self, free: list[EngineFlight], request: GenerationRequest) -> EngineFlight:
        """The server that has the prompt in its cache, from an earlier sample, unless it is much
        fuller (``FULLER``) than the emptiest one."""
        if len(self.engines) == 1:
            return free[0]
        emptiest = min(free, key=lambda e: len(e.in_flight))
        end = request.prompt_ids[-PROMPT_END:]
        prompt = hash((request.cache_salt, len(request.prompt_ids), *end))
        home = self._homes.get(prompt)
        least = len(emptiest.in_flight)
        if home not in free or len(home.in_flight) > least + max(FULLER, least // 4):
            home = emptiest
        self._homes[prompt] = home
        return home

    async def _complete(self, engine: EngineFlight, request: GenerationRequest) -> Completion:
        """One response, recorded in the timeline."""
        begin = time.time()
        done = await self._ask(engine, request)
        track = f"{ENGINE}{engine.client.url}"
        self.timeline.add("request", begin, track, tokens=len(done.token_ids))
        return done

    async def _ask(self, engine: EngineFlight, request: GenerationRequest) -> Completion:
        """Send a request; if it is sent again, its seed asks for the same tokens."""
        for delay_s in RETRY_DELAYS_S:
            try:
                return await engine.client.complete(request)
            except TransientError as error:
                if engine.retries == 0:
                    log.warning(f"aent: sent again: {_first_line(error)}")
                engine.retries += 1
            await asyncio.sleep(delay_s * self._jitter.uniform(0.5, 1.0))
        return await engine.client.complete(request)

    def _note_end(self, task: asyncio.Task[Completion]) -> None:
        self._ended.append(task)
        self._woken.set()

    async def land(self) -> list[tuple[int, Completion]]:
        """Wait until requests end or are added: (index, completion) of each that has ended. Servers
        that are lost are dropped.

        Raises the error of a request that failed on a healthy server.
        """
        first = min((e.due for e in self.engines if e.in_flight), default=math.inf)
        patience_s = max(SHORTEST_WAIT_S, first - self.clock.now())
        try:
            async with asyncio.timeout(patience_s if patience_s < math.inf else None):
                await self._woken.wait()
        except TimeoutError:
            pass
        ended, self._ended = self._ended, []
        self._woken.clear()
        landed = []
        for task in ended:
            engine = self._owners.pop(task, None)
            if engine is None:  # cancelled
                continue
            if (error := task.exception()) is not None:
                await self._fail(engine, error)
                continue
            landed.append((engine.in_flight.pop(task)[0], task.result()))
            engine.advance(self.clock.now())
            if not engine.in_flight:
                self.clock.end(engine.client.url)
        for engine in list(self.engines):
            if engine.in_flight and engine.due <= self.clock.now():
                await self._look(engine)
        return landed

    async def _fail(self, engine: EngineFlight, error: BaseException) -> None:
        """A request ended with an error: if its server is healthy, everything ends."""
        refused = isinstance(error, RefusedError) or not isinstance(error, EngineError)
        if refused or await engine.client.is_healthy():
            raise error
        assert isinstance(error, EngineError)
        self._lose(engine, error)

    async def _look(self, engine: EngineFlight) -> None:
        """No response has ended for a while: check whether the server writes tokens. If it does not
        but is healthy, it may have lost requests, and gets them again, once."""
        now = self.clock.now()
        client, before = engine.client, engine.tokens
        engine.looked = now
        try:
            engine.tokens = await client.tokens_written()
        except EngineError:
            pass  # counts as silence
        else:
            if before is not None and engine.tokens != before:
                engine.advance(now)
                self.on_progress()
        if now < engine.progress + client.progress_timeout_s:
            return
        if any(task.done() for task in engine.in_flight):  # while it was checked
            return
        silence = client.error(
            f": no token written for {now - engine.progress:.0f} s "
            f"({len(engine.in_flight)} requests in flight)"
        )
        if engine.sent_again or not await client.is_healthy():
            self._lose(engine, silence)
            return
        log.warning(f"aent: sent again: {_first_line(silence)}")
        self.waiting.extendleft(reversed(self.stop(engine)))
        self._homes.clear()  # its requests go to it again, because it is the emptiest
        engine.sent_again = True
        self.on_progress()
        self.send()
        engine.progress = engine.looked = self.clock.now()

    def stop(self, engine: EngineFlight) -> list[Item]:
        """Cancel its requests and return them."""
        items = list(engine.in_flight.values())
        if items:
            self.clock.end(engine.client.url)
        for task in engine.in_flight:
            self._owners.pop(task, None)
            task.cancel()
        self.cancelled += engine.in_flight
        engine.in_flight = {}
        return items

    def _lose(self, engine: EngineFlight, error: EngineError) -> None:
        self.engines.remove(engine)
        self.waiting.extendleft(self.stop(engine))
        self.lose(engine.client, error)
        if not self.engines:
            raise error  # others that returned to the fleet have not been tried


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
