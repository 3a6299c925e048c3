"""Connections: few, kept, closed with their event loop, and named where there are too many."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from aent.inference import http
from aent.inference.client import EngineClient
from aent.inference.completion import GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.http import OutOfFilesError, connection
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


def test_a_loop_closes_its_clients_when_it_ends() -> None:
    async def twice() -> list[httpx.AsyncClient]:
        clients = []
        for _ in range(2):
            async with connection("http://a") as client:
                clients.append(client)
        return clients

    first, again = asyncio.run(twice())
    assert first is again
    assert first.is_closed
    assert asyncio.run(twice())[0] is not first


def test_many_requests_at_once_have_clients_of_few_connections() -> None:
    async def open_many(count: int) -> list[httpx.AsyncClient]:
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(connection("http://a")) for _ in range(count)]
        async with connection("http://a") as client:
            assert client is opened[0]  # the first that is free again
        return opened

    opened = asyncio.run(open_many(2 * http.POOL + 1))
    assert [sum(c is client for c in opened) for client in dict.fromkeys(opened)] == [
        http.POOL,
        http.POOL,
        1,
    ]


def test_the_soft_limit_is_raised(limits: tuple[int, int]) -> None:
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))

    async def connect() -> None:
        async with connection("http://a"):
            pass

    asyncio.run(connect())
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
