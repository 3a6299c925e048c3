"""How engines are reached over HTTP: connections that are kept, and errors told apart.

Each event loop keeps its connections to an engine, so that a thousand requests share some instead
of opening one each. A client looks at all of its connections whenever a request begins or ends, so
an engine with hundreds of requests at once has several clients of a few connections.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import resource
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import httpx

KEEPALIVE_S = 3.0  # without a request; vLLM's server closes after 5 s, and none must meet that
POOL = 16  # requests at once by one client
OPEN_FILES = 65_536  # of this process, where the hard limit allows it
TOO_MANY_REQUESTS = 429


class EngineError(RuntimeError):
    """A server failed, vanished, stayed silent, or answered what it must not."""


class TransientError(EngineError):
    """A connection broke, or the server was too busy (429) or failed (5xx): the same call again may
    succeed."""


class RefusedError(EngineError):
    """The call cannot succeed: the server refuses it (4xx), or this process cannot make it. The
    server itself is well."""


class OutOfFilesError(RefusedError):
    """This process may open no more connections, to any server."""


@dataclass
class _Pool:
    """A client with some of an engine's connections."""

    client: httpx.AsyncClient
    busy: int = 0  # requests under way


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client for one request to the engine at ``url``; the running event loop keeps it, with its
    connections, and closes it before it is closed itself."""
    loop = asyncio.get_running_loop()
    if loop not in _pools:
        _raise_open_files()
        # asyncio.run closes the generators that are left, and so these clients, with the loop
        _generators[loop] = _kept_open()
        _pools[loop] = await anext(_generators[loop])
    pools = _pools[loop].setdefault(url, [])
    pool = next((pool for pool in pools if pool.busy < POOL), None)
    if pool is None:
        pool = _Pool(_new_client(url))
        pools.append(pool)
    pool.busy += 1
    try:
        yield pool.client
    finally:
        pool.busy -= 1


def _new_client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=None,
        trust_env=False,  # engines are reached directly, never through a proxy of the environment
        verify=url.startswith("https"),  # else reading certificates takes as long as the rest
        limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
    )


_Pools = dict[str, list[_Pool]]
_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools] = WeakKeyDictionary()
_generators: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[_Pools]] = (
    WeakKeyDictionary()
)


async def _kept_open() -> AsyncGenerator[_Pools]:
    pools: _Pools = {}
    try:
        yield pools
    finally:
        for pool in itertools.chain.from_iterable(pools.values()):
            await pool.client.aclose()


def _raise_open_files() -> None:
    """Let this process have as many connections as its hard limit allows: the usual soft limit,
    1,024, is what four engines get requests at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def error_of_status(status: int) -> type[EngineError]:
    """The kind of an answer that is no success."""
    if status == TOO_MANY_REQUESTS or status >= 500:
        return TransientError
    return RefusedError


def out_of_files(error: BaseException) -> str:
    """What to do where no connection could be opened for want of files; empty if that is not it."""
    seen: list[BaseException | None] = [error]
    while seen:
        cause = seen.pop()
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return (
                f"this process may open no more files or connections (its limit is {soft}): raise "
                "it (ulimit -n) or lower rollout.concurrency"
            )
        if cause is not None:
            seen += [cause.__cause__, cause.__context__]
            seen += cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
    return ""
