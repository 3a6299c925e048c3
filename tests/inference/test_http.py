"""Connections: few, kept, closed with their event loop, and reported if there are too many."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
from collections.abc import Iterator

import aiohttp
import pytest

from aent.inference import http
from aent.inference.client import EngineClient
from aent.inference.completion import GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError, OutOfFilesError
from inference.stand_in import COMPLETION, standing_in
from wording import naming

REQUESTS = [GenerationRequest([1, 2, 3], 2, seed=i) for i in range(40)]


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """Of open files; restored afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_requests_share_connections() -> None:
    with standing_in(lambda *_: (200, COMPLETION)) as server:
        client = EngineClient(server.url, concurrency=4)
        Fleet([client]).generate_sync(REQUESTS)
        assert 1 <= server.connections <= 4


def test_a_loop_closes_its_session_when_it_ends() -> None:
    async def twice(url: str) -> list[aiohttp.ClientSession]:
        sessions = []
        for _ in range(2):
            assert (await http.ask("GET", f"{url}/health")).status == 200
            sessions.append(await http._session())
        return sessions

    with standing_in(lambda *_: (200, {})) as server:
        first, again = asyncio.run(twice(server.url))
        assert first is again
        assert first.closed
        assert server.connections == 1
        assert asyncio.run(twice(server.url))[0] is not first


def test_a_connection_is_looked_at_before_anything_is_sent_through_it() -> None:
    async def ask_twice(url: str) -> None:
        async def opened() -> None:
            looks.append(len(server.asked))

        for _ in range(2):
            await http.ask("GET", f"{url}/a", opened=opened)

    looks: list[int] = []
    with standing_in(lambda *_: (200, {})) as server:
        asyncio.run(ask_twice(server.url))
        assert looks == [0]  # once, for the one connection
        assert server.asked == ["/a", "/a"]


def test_a_connection_that_nobody_looked_at_is_looked_at_when_somebody_asks_for_it() -> None:
    async def ask_twice(url: str) -> None:
        async def opened() -> None:
            looks.append(len(server.asked))

        await http.ask("GET", f"{url}/a")
        await http.ask("GET", f"{url}/a", opened=opened)

    looks: list[int] = []
    with standing_in(lambda *_: (200, {})) as server:
        asyncio.run(ask_twice(server.url))
        assert server.connections == 1
        assert looks == [1]


def test_a_connection_that_is_not_trusted_is_not_used() -> None:
    async def refuse() -> None:
        raise EngineError("a stranger")

    with standing_in(lambda *_: (200, {})) as server:
        with pytest.raises(EngineError, match="stranger"):
            asyncio.run(http.ask("GET", f"{server.url}/a", opened=refuse))
        assert server.asked == []


def test_the_soft_limit_is_raised(limits: tuple[int, int]) -> None:
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))

    asyncio.run(http._session())
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = http.OPEN_FILES
    assert soft == (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted))


def test_too_many_open_files_are_named_and_no_engine_is_blamed(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:  # and never answering
        used = set(map(int, os.listdir("/proc/self/fd")))
        free = (number for number in itertools.count() if number not in used)
        few = next(itertools.islice(free, 20, None))
        monkeypatch.setattr(http, "OPEN_FILES", few)
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        client = EngineClient(url, progress_timeout_s=5.0)
        with pytest.raises(OutOfFilesError, match=naming(few, "rollout.concurrency")):
            Fleet([client]).generate_sync(REQUESTS)


def test_a_connection_on_which_nothing_was_proven_never_carries_the_token() -> None:
    """Of a server that keeps it open, whatever it answers."""

    async def try_twice(client: EngineClient) -> None:
        for _ in range(2):
            with pytest.raises(EngineError, match="503"):
                await client.complete(REQUESTS[0])

    with standing_in(
        lambda path, _: (503, {}) if path == "/health" else (200, COMPLETION)
    ) as server:
        client = EngineClient(server.url, token="a secret", has_to_prove=True)
        asyncio.run(try_twice(client))
        assert set(server.asked) == {"/health"}
        assert not any("secret" in headers for headers in server.told)


def test_a_redirect_is_not_followed() -> None:
    with standing_in(lambda path, _: (302, {})) as server:
        assert asyncio.run(http.ask("GET", f"{server.url}/a")).status == 302
