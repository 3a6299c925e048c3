"""HTTP connections to engines, which are kept open, and the kinds of errors.

Each event loop keeps one session, so that a thousand requests share its connections instead of
opening one each. It is aiohttp's, because a request takes the client a fifth of httpx's processor
time (``benchmarks/request_cost.py``).
"""

from __future__ import annotations

import asyncio
import errno
import resource
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiohttp.connector import Connection

KEEPALIVE_S = 3.0  # without a request; vLLM's server closes after 5 s, which no request must meet
OPEN_FILES = 65_536  # of this process, if the hard limit allows it
TOO_MANY_REQUESTS = 429


class EngineError(RuntimeError):
    """A server failed, vanished, stayed silent, or gave an invalid answer."""


class TransientError(EngineError):
    """A connection broke, or the server was too busy (429) or failed (5xx): the same call again may
    succeed."""


class RefusedError(EngineError):
    """The call cannot succeed: the server refuses it (4xx), or this process cannot make it. The
    server itself is healthy."""


class OutOfFilesError(RefusedError):
    """This process cannot open more connections, to any server."""


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


async def ask(
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    params: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    opened: Callable[[], Awaitable[None]] | None = None,
) -> Answer:
    """Send one request through the session of the running event loop, which closes the session when
    it ends. A redirect is returned like any answer.

    body: JSON. opened: awaited if a connection had to be opened for this request, before anything
    is sent.

    Raises aiohttp.ClientError, OSError, and what ``opened`` raises.
    """
    _opened.set(opened)
    return await _request(await _session(), method, url, body, params, headers)


async def ask_apart(method: str, url: str, *, headers: Mapping[str, str] | None = None) -> Answer:
    """``ask`` through a separate connection, which no other request uses."""
    async with _made(aiohttp.TCPConnector(force_close=True)) as once:
        return await _request(once, method, url, None, None, headers)


async def _request(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    body: bytes | None,
    params: Mapping[str, Any] | None,
    headers: Mapping[str, str] | None,
) -> Answer:
    if body is not None:
        headers = {**(headers or {}), "Content-Type": "application/json"}
    told = {k: str(v).lower() if isinstance(v, bool) else v for k, v in (params or {}).items()}
    async with session.request(
        method, url, data=body, params=told, headers=headers, allow_redirects=False
    ) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


async def _session() -> aiohttp.ClientSession:
    loop = asyncio.get_running_loop()
    if loop not in _sessions:
        _raise_open_files()
        # asyncio.run closes remaining generators, and so this session, with the loop
        _generators[loop] = _kept_open()
        _sessions[loop] = await anext(_generators[loop])
    return _sessions[loop]


_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()
_generators: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[aiohttp.ClientSession]] = (
    WeakKeyDictionary()
)


async def _kept_open() -> AsyncGenerator[aiohttp.ClientSession]:
    loop = asyncio.get_running_loop()
    session = _made(_Connector(limit=0, keepalive_timeout=KEEPALIVE_S))
    try:
        yield session
    finally:
        await session.close()
        _sessions.pop(loop, None)  # it refers to its loop, which is its key
        _generators.pop(loop, None)


def _made(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None),  # callers have their own
        trust_env=False,  # engines are reached directly, never through a proxy from the environment
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class _Connector(aiohttp.TCPConnector):
    """Awaits a request's ``opened`` before it gives it a connection for which none was awaited yet.
    (A TraceConfig, aiohttp's way to tell of new connections, costs each request 0.1 ms.)"""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._looked_at: WeakSet[Any] = WeakSet()

    async def connect(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Connection:
        connection = await super().connect(req, traces, timeout)
        opened = _opened.get()
        if opened is not None and connection.protocol not in self._looked_at:
            try:
                await opened()
            except BaseException:
                connection.close()
                raise
            self._looked_at.add(connection.protocol)
        return connection


# of the request that is being made
_opened: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("opened", default=None)


def _raise_open_files() -> None:
    """Let this process have as many connections as its hard limit allows: four engines get 1,024
    requests at once, which is the usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def error_of_status(status: int) -> type[EngineError]:
    """The kind of error for an answer that is not a success."""
    if status == TOO_MANY_REQUESTS or status >= 500:
        return TransientError
    return RefusedError


def out_of_files(error: BaseException) -> str:
    """What to do if no connection could be opened for lack of files; empty for another error."""
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
