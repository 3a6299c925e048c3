"""Sending a bucket to an engine: the call and the broadcasts wait for one another."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from aent.inference.client import EngineClient
from aent.inference.http import EngineError, TransientError
from aent.weights import waiting
from aent.weights.by_network import Bucket, send
from aent.weights.manifest import TensorSpec
from aent.weights.transport import Broadcast, GlooTransport, NcclTransport
from aent.weights.weight_transfer import TransferSettings, WeightSender, WeightSyncError
from inference.stand_in import RESET, standing_in
from wording import naming

BUCKET: Bucket = [(n, TensorSpec.of(t), t) for n, t in (("a", torch.ones(3)), ("b", torch.ones(2)))]


class Sent:
    """A broadcast that has ended."""

    def is_completed(self) -> bool:
        return True

    def wait(self) -> None:
        pass


@dataclass
class Connecting:
    """Blocks in its first broadcast until the engine takes part, as NCCL does over nodes."""

    takes_part: Callable[[], bool]
    closed: bool = False

    def broadcast(self, tensor: Tensor) -> Broadcast:
        if not self.takes_part():
            raise RuntimeError("nobody came")
        return Sent()

    def close(self) -> None:
        self.closed = True


def send_to(url: str, transport: Connecting, timeout_s: float) -> None:
    asyncio.run(send([EngineClient(url)], transport, BUCKET, timeout_s))


def test_broadcasts_may_wait_for_the_request_and_the_request_for_them() -> None:
    asked, sent = threading.Event(), threading.Event()

    def answer(path: str, body: dict) -> tuple[int, dict]:
        assert body["update_info"]["names"] == ["a", "b"]
        asked.set()
        return (200, {}) if sent.wait(60) else (500, {})

    def takes_part() -> bool:
        came = asked.wait(60)
        sent.set()
        return came

    with standing_in(answer) as server:
        send_to(server.url, Connecting(takes_part), 60.0)
        assert server.asked == ["/update_weights"]


def test_deadlines_hold_while_a_broadcast_blocks() -> None:
    over = threading.Event()

    def answer(path: str, body: dict) -> tuple[int, dict]:
        over.wait(60)
        return 200, {}

    with standing_in(answer) as server:
        with pytest.raises(EngineError, match=naming(f"{server.url}/update_weights", "0 s")):
            send_to(server.url, Connecting(lambda: over.wait(60)), 0.2)
        over.set()


def test_a_broadcast_that_nobody_ends_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LAST_WORDS_S", 0.1)
    over = threading.Event()
    with standing_in(lambda *_: (200, {})) as server:
        with pytest.raises(EngineError, match=naming(server.url, "0 s")):
            send_to(server.url, Connecting(lambda: over.wait(60)), 0.2)
        over.set()


def test_what_an_engine_says_comes_before_what_its_broadcast_broke_of() -> None:
    with (
        standing_in(lambda *_: (500, {"error": "out of memory"})) as server,
        pytest.raises(EngineError, match=naming(500, "out of memory")),
    ):
        send_to(server.url, Connecting(lambda: False), 5.0)


def test_why_our_end_did_not_join_is_told_though_the_engine_still_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()

    def answer(path: str, body: dict) -> tuple[int, dict]:
        if path == "/init_weight_transfer_engine":
            over.wait(60)  # for us
        return 200, {"results": [], "world_size": 1}

    def join(*arguments: object) -> Connecting:
        raise RuntimeError("no memory left on this device")

    monkeypatch.setattr(waiting, "LAST_WORDS_S", 0.1)
    monkeypatch.setattr(GlooTransport, "join", join)
    with standing_in(answer) as server:
        sender = WeightSender([EngineClient(server.url)], TransferSettings(timeout_s=60.0))
        with pytest.raises(EngineError, match="no memory left on this device"):
            asyncio.run(sender.connect())
        over.set()
    assert sender.transport is None
    assert sender.joined == []


def test_a_broadcast_by_nccl_that_failed_is_under_way_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broadcast(*arguments: object, **options: object) -> None:
        raise RuntimeError("remote process exited")

    monkeypatch.setattr(Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda.nccl, "broadcast", broadcast)
    transport = NcclTransport("communicator", device=0)
    with pytest.raises(RuntimeError, match="remote process exited"):
        transport.broadcast(torch.ones(3))
    transport.close()


@dataclass
class StandInEngine:
    """The routes of an engine that loads all of ``BUCKET``; ``fails`` at one of them, once."""

    fails: str
    version: str = "4"

    def __call__(self, path: str, body: dict) -> object:
        if path == "/finish_weight_update":
            self.version = body["weight_version"]
        if path == self.fails:
            self.fails = ""
            return RESET
        arrived = {name: [list(s.shape), s.dtype, s.checksum] for name, s, _ in BUCKET}
        answer = {"weight_version": self.version, "results": [arrived], "success": True}
        return 200, answer


class Reconnecting(WeightSender):
    """Always connects at once."""

    async def connect(self) -> None:
        self.transport = Connecting(lambda: True)
        self.joined = [client.url for client in self.clients]


@pytest.mark.parametrize(
    "route",
    ["/pause", "/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/resume"],
)
def test_an_update_that_broke_off_can_be_sent_again_wherever_it_did(route: str) -> None:
    with standing_in(StandInEngine(route)) as server:
        sender = Reconnecting([EngineClient(server.url)], TransferSettings(timeout_s=60.0))
        sender.version = 4

        def push() -> None:
            asyncio.run(sender.push(iter([(n, t) for n, _, t in BUCKET]), 5, None))

        with pytest.raises(TransientError, match=route):
            push()
        push()
        assert sender.version == 5
        with pytest.raises(WeightSyncError, match=r"version 5\b"):
            push()
