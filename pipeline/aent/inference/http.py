"""How engines are reached over HTTP: connections that are kept, and errors told apart.

Each event loop has one client per engine, so that a thousand requests share connections instead of
opening one each.
"""

from __future__ import annotations

import asyncio
import errno
import resource
from collections.abc import AsyncGenerator
from weakref import WeakKeyDictionary

import httpx

KEEPALIVE_S = 3.0  # without a request; vLLM's server closes after 5 s, and none must meet that
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


async def http_client(url: str) -> httpx.AsyncClient:
    """The running event loop's client for the engine at ``url``; closed before the loop is."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _raise_open_files()
        # asyncio.run closes the generators that are left, and so these connections, with the loop
        _generators[loop] = _kept_open()
        _clients[loop] = await anext(_generators[loop])
    clients = _clients[loop]
    if url not in clients:
        clients[url] = httpx.AsyncClient(
            timeout=None,
            # engines are reached directly, never through a proxy of the environment
            trust_env=False,
            verify=url.startswith("https"),  # else reading certificates takes as long as the rest
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
        )
    return clients[url]


_Clients = dict[str, httpx.AsyncClient]
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, _Clients] = WeakKeyDictionary()
_generators: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[_Clients]] = (
    WeakKeyDictionary()
)


async def _kept_open() -> AsyncGenerator[_Clients]:
    clients: _Clients = {}
    try:
        yield clients
    finally:
        for client in clients.values():
            await client.aclose()


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
