"""A lost server whose machine answers nothing costs an update nothing, and comes back if it can."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aent.inference import client as client_module
from aent.inference import lost
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from aent.runtime.worker_thread import WorkerThread
from inference.stand_in import standing_in
from waiting import PATIENCE_S, wait_until
from wording import assert_names


@pytest.fixture(autouse=True)
def _patiently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a server that does not answer waits longer than this test may take."""
    for name in ("HEALTH_S", "READY_CALL_S"):
        monkeypatch.setattr(client_module, name, 36_000.0)
    monkeypatch.setattr(lost, "POLL_S", 0.02)


@contextlib.contextmanager
def swallowing() -> Iterator[str]:
    """An address where packets vanish, as on a dead machine: the kernel answers no more requests
    for a connection, because as many as it keeps were not accepted."""
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listening.getsockname()[1]
        for _ in range(4):
            one = sockets.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def without_last(*clients: EngineClient) -> Iterator[Fleet]:
    """A fleet that has lost the last one."""
    fleet = Fleet(list(clients), min_engines=1, known=lambda: clients)
    fleet.lose(clients[-1], EngineError("its machine is dead"))
    try:
        yield fleet
    finally:
        fleet.size = len(fleet.clients)  # ends the thread


def readmit(fleet: Fleet, version: int) -> list[str]:
    """In a thread: it fails if it waits for a server."""
    asked = WorkerThread("readmits").submit(lambda: asyncio.run(fleet.readmit(version)))
    return asked.result(PATIENCE_S)


def came_back(fleet: Fleet, version: int) -> str:
    told: list[str] = []
    wait_until(lambda: told.extend(readmit(fleet, version)) or told, "a server comes back")
    return told[0]


def test_an_update_does_not_wait_for_a_dead_machine_nor_another_lost_server_for_it() -> None:
    with swallowing() as dead, standing_in(lambda *_: (200, {})) as server:
        first, second, third = (EngineClient(url) for url in (server.url, dead, "http://a:1"))
        third.url = server.url.replace("127.0.0.1", "localhost")
        with without_last(first, third, second) as fleet:
            assert [readmit(fleet, version) for version in range(3)] == [[], [], []]
            fleet.lose(third, EngineError("it was restarted"))
            assert_names(came_back(fleet, 3), third.url, "takes part")
            assert fleet.clients == [first, third]


def test_a_machine_that_answers_again_is_found_and_asked_once_more() -> None:
    """One that was found and then lost again is not taken back."""
    state = {"answers": False, "refuses": False}
    changed, asked = threading.Condition(), threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked.set()
        with changed:
            changed.wait_for(lambda: state["answers"])
        return (503 if state["refuses"] else 200), {}

    with standing_in(lambda *_: (200, {})) as well, standing_in(answer) as server:
        back = EngineClient(server.url)
        with without_last(EngineClient(well.url), back) as fleet:
            assert asked.wait(PATIENCE_S)
            assert readmit(fleet, 1) == []
            with changed:
                state["answers"] = True
                changed.notify_all()
            assert fleet._watch is not None
            wait_until(fleet._watch.found, "it is found")
            state["refuses"] = True
            assert readmit(fleet, 1) == []
            assert back not in fleet.clients
            wait_until(lambda: not fleet._watch.found(), "it is missed again")
            state["refuses"] = False
            assert_names(came_back(fleet, 1), server.url, "takes part")
            assert back in fleet.clients


def test_one_that_does_not_accept_the_token_does_not_come_back() -> None:
    accepts = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (200 if path == "/health" or accepts.is_set() else 401), {}

    with (
        standing_in(lambda *_: (200, {})) as well,
        standing_in(answer) as server,
        without_last(EngineClient(well.url), EngineClient(server.url)) as fleet,
    ):
        wait_until(lambda: server.asked.count("/weight_info") > 2, "it is asked")
        assert readmit(fleet, 1) == []
        accepts.set()
        came_back(fleet, 1)


def test_nobody_is_asked_when_no_server_is_missing_and_again_after_the_next_loss(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A folder that cannot be read meanwhile is reported once."""
    unreadable = [OSError("run/token: stale handle")] * 3
    with standing_in(lambda *_: (200, {})) as first, standing_in(lambda *_: (200, {})) as second:
        clients = [EngineClient(server.url) for server in (first, second)]

        def known() -> list[EngineClient]:
            if unreadable:
                raise unreadable.pop()
            return clients

        fleet = Fleet(list(clients), min_engines=1, known=known)
        for version in range(3):
            fleet.lose(clients[1], EngineError("the connection broke"))
            came_back(fleet, version)
            wait_until(lambda: not fleet._watch._running, "the thread ends")
    assert capfd.readouterr().err.count("stale handle") == 1
