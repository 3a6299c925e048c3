"""Servers that fail to start or die while working: errors with log lines, no orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from aent.inference import engine
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from inference import models
from plugins.servers import READY_S, Served
from processes import assert_gone
from weights.test_weight_transfer import connected, in_flight
from wording import naming

pytestmark = pytest.mark.slow

# starts a server from the arguments' folder and waits to be killed
PARENT = """
import sys, time
from pathlib import Path
from aent.inference import engine
folder = Path(sys.argv[1])
e = engine.start(engine.EngineSettings(
    model_path=folder / "model", served_name="tiny", log_path=folder / "engine.log",
    max_model_len=320, kv_cache_gib=0.05, cpu_threads=1))
e.wait_ready(900)
print(e.url, flush=True)
time.sleep(600)
"""


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_tied_embeddings_update_then_death_in_mid_transfer(
    served_tied: Served, served: Served
) -> None:
    async def scenario() -> None:
        link = await connected(served_tied, "network")
        assert "lm_head.weight" not in link.expected
        for seed in (31, 32):
            model = models.make(seed, tied=True)
            await link.push(model)
            assert link.gap(model, await link.probe()) < 1e-4

        other = await connected(
            served, "network"
        )  # has a head of its own, which it keeps in this update
        link.sender.clients.append(other.client)
        tensors = models.named_tensors(models.make(33, tied=True))
        server = served_tied.engine.child.process.pid
        everybody = family(server)
        assert len(everybody) >= 2  # API server and engine core
        yielded: list[str] = []

        def export() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in tensors.items():
                if len(yielded) == 12:
                    os.kill(server, signal.SIGKILL)
                yielded.append(name)
                yield name, tensor

        with pytest.raises(EngineError, match=r"http://127\S+") as caught:
            await asyncio.wait_for(link.sender.push(export(), 99, link.expected), 300)
        assert str(served_tied.engine.settings.log_path) in str(caught.value)
        assert "pid=" in str(caught.value)  # lines of vLLM's log
        assert yielded == list(tensors)  # the other ranks of an export are not left waiting
        assert_gone(everybody, within_s=60)

        fleet = Fleet(link.sender.clients, min_engines=1)
        await fleet.drop_lost(caught.value)
        assert fleet.clients == [other.client]
        assert (await other.client.call("GET", "/is_paused"))["is_paused"]
        model = models.make(34)  # what it has received of the broken update does no harm
        await link.sender.push(iter(models.named_tensors(model).items()), 99, other.expected)
        assert other.gap(model, await other.probe()) < 1e-4
        tensors = models.named_tensors(served.model)  # for the tests of others
        await link.sender.push(iter(tensors.items()), 100, other.expected)

    asyncio.run(scenario())


def test_death_of_the_parent_in_mid_generation(tmp_path: Path) -> None:
    models.save(models.make(0), tmp_path / "model")
    argv = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            url = parent.stdout.readline().strip()
            everybody = family(parent.pid)
            client = EngineClient(url, log_path=tmp_path / "engine.log")

            async def scenario() -> None:
                pending, first_done = in_flight(client)
                await asyncio.wait_for(first_done.wait(), 300)
                parent.kill()
                names = ("/inference/v1/generate", tmp_path / "engine.log")
                with pytest.raises(EngineError, match=naming(*names)):
                    await asyncio.wait_for(pending, 300)

            asyncio.run(scenario())
        finally:
            parent.kill()
    assert_gone(everybody, within_s=60)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    settings = engine.EngineSettings(
        model_path=tmp_path / "nothing",
        served_name="tiny",
        log_path=tmp_path / "engine.log",
        max_model_len=64,
    )
    started = engine.start(settings)
    try:
        with pytest.raises(EngineError, match=naming("code 1", settings.log_path, "nothing")):
            started.wait_ready(READY_S)
    finally:
        started.stop()


def test_a_server_that_is_not_ready_in_time(tmp_path: Path) -> None:
    models.save(models.make(0), tmp_path / "model")
    settings = engine.EngineSettings(
        model_path=tmp_path / "model",
        served_name="tiny",
        log_path=tmp_path / "engine.log",
        max_model_len=64,
        kv_cache_gib=0.05,
    )
    started = engine.start(settings)
    everybody = family(started.child.process.pid)
    with pytest.raises(EngineError, match=naming(started.url, "0 s")):
        started.wait_ready(0.01)
    started.stop(grace_s=0.1)
    assert_gone(everybody, within_s=0.1)
