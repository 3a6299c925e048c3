"""Engines that are lost in the middle of their work: nothing is missing, until too few are left."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from aent.rollout.client import Completion, EngineClient, EngineError, Fleet, GenerationRequest
from aent.rollout.manifest import expected_manifest
from aent.rollout.weight_transfer import TransferSettings, WeightSender
from aent.runtime.children import free_port
from rollout import models
from rollout.conftest import Served, serving

# of different lengths, so that each can be told from the others
REQUESTS = [GenerationRequest([i + 1], 20 + i, seed=i) for i in range(32)]


def generate(fleet: Fleet, at_first: Callable[[], None]) -> list[Completion]:
    """Have everything written; ``at_first`` happens when the first response has ended."""
    ended: list[int] = []

    def progress() -> None:
        ended.append(1)
        if len(ended) == 1:
            at_first()

    return fleet.generate_sync(REQUESTS, progress)


def assert_whole(done: list[Completion]) -> None:
    assert [len(c.token_ids) for c in done] == [r.max_tokens for r in REQUESTS]


@pytest.mark.slow
def test_the_others_take_over_from_a_frozen_and_from_a_dead_engine(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path) as second:
        first, other = served.engine.client(), second.engine.client()
        other.progress_timeout_s = 2.0  # the first one's stays long: a slow machine is not a loss
        server = psutil.Process(second.engine.child.process.pid)
        family = [server, *server.children(recursive=True)]

        def all_of(number: signal.Signals) -> None:
            for process in family:
                process.send_signal(number)

        fleet = Fleet([first, other], min_engines=1)
        sender = WeightSender(fleet.clients, TransferSettings(timeout_s=60))
        asyncio.run(sender.connect())
        assert_whole(generate(fleet, lambda: all_of(signal.SIGSTOP)))
        assert fleet.clients == [first]
        assert "an engine is lost, 1 are left" in capfd.readouterr().err

        # new weights reach those who are left: nobody waits for the frozen one
        version = asyncio.run(first.weight_version()) + 1
        tensors = models.named_tensors(served.model)
        expected = expected_manifest(served.folder)
        asyncio.run(sender.push(iter(tensors.items()), version, expected))
        assert asyncio.run(first.weight_version()) == version

        all_of(signal.SIGCONT)
        fleet = Fleet([first, other], min_engines=1)
        other.progress_timeout_s = 300.0  # its death is seen at once
        assert_whole(generate(fleet, lambda: all_of(signal.SIGKILL)))
        assert fleet.clients == [first]


def test_too_few_engines_end_it_and_say_so() -> None:
    gone = EngineClient(f"http://127.0.0.1:{free_port()}", "tiny")
    with pytest.raises(EngineError, match=r"0 engines are left, rollout\.min_engines=1: engine .*"):
        Fleet([gone], min_engines=1).generate_sync(REQUESTS)
    others = [EngineClient(f"http://127.0.0.1:{free_port()}", "tiny") for _ in range(2)]
    with pytest.raises(EngineError, match="ConnectError"):  # by default no engine may be lost
        Fleet(others).generate_sync(REQUESTS)
