"""Engines that are lost while they work: no response is missing, until too few engines are left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import Qwen2ForCausalLM

from aent.inference import flight, registry
from aent.inference.client import EngineClient
from aent.inference.completion import Completion, GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from aent.recipe.load import dump
from aent.recipe.schema import Recipe
from aent.runtime.worker_thread import WorkerThread
from aent.weights import probe
from aent.weights.manifest import expected_manifest
from aent.weights.weight_transfer import TransferSettings, WeightSender
from inference import models
from inference.stand_in import standing_in
from plugins.servers import READY_S, Served
from processes import command_line, free_port
from waiting import wait_until
from weights.test_weight_transfer import PROMPTS
from wording import assert_names, naming

# of different lengths, to tell them apart; all but the first take long
REQUESTS = [GenerationRequest([i + 1], 250 + i if i else 4, seed=i) for i in range(32)]


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


@contextlib.contextmanager
def kept(run_dir: Path, beside: Served) -> Iterator[None]:
    """An engine of a run with two, whose task of a Slurm job keeps it (``slurm.serve``)."""
    recipe = Recipe.model_validate({
        "name": "tiny",
        "model": {"path": str(beside.folder)},
        "controller": {"initial": 0.0},
        "rollout": {
            "engines": 1, "urls": [beside.engine.url], "min_engines": 1,
            "max_prompt_tokens": models.MAX_LENGTH - 60, "max_response_tokens": 60,
            "engine": {"kv_cache_gib": 0.05, "start_timeout_s": READY_S},
        },
    })  # fmt: skip
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    registry.make_token(run_dir)
    place = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "GLOO_SOCKET_IFNAME": "lo"}
    argv = [sys.executable, "-m", "aent.slurm.serve", str(run_dir), str(beside.folder), "0"]
    with subprocess.Popen(argv, env={**os.environ, **place}) as task:
        try:
            yield
        finally:
            try:
                task.terminate()
                task.wait(timeout=300)
            finally:
                task.kill()


def wait_for_engine(run_dir: Path, last: str = "") -> EngineClient:
    """The kept engine, when it has another address than ``last``."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        for client in registry.published(run_dir, 1):
            if client.url != last:
                return client
        time.sleep(0.1)
    raise AssertionError(f"no engine but {last} within {READY_S:.0f} s")


def send_all(client: EngineClient, number: signal.Signals) -> None:
    """Signal the server at this address and every process it has started."""
    port = int(client.url.rpartition(":")[2])
    (server,) = [p for p in psutil.process_iter() if f"--port={port}" in command_line(p)]
    for process in [server, *server.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # they die with the server
            process.send_signal(number)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # three starts
def test_others_take_over_from_a_lost_engine_and_one_that_is_back_catches_up_first(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with kept(tmp_path, served):
        first, other = served.engine.client(), wait_for_engine(tmp_path)
        lost: list[EngineClient] = []

        def lose(client: EngineClient) -> None:
            lost.append(client)
            if gives_up:
                registry.give_up(tmp_path, client.url)

        gives_up = False  # at first nobody replaces it, as with an engine of rollout.urls
        fleet = Fleet([first, other], min_engines=1, on_loss=lose, known=lambda: [first, other])
        sender = WeightSender(fleet.clients, TransferSettings(timeout_s=120))
        asyncio.run(sender.connect())
        text = probe.text_of(PROMPTS, probe.TOKENS)

        def push(model: Qwen2ForCausalLM) -> None:
            version = asyncio.run(first.weight_version()) + 1
            tensors = iter(models.named_tensors(model).items())
            asyncio.run(sender.push(tensors, version, expected_manifest(served.folder)))
            for client in fleet.clients:
                seen = asyncio.run(probe.ask(client, text, 32))
                expected = models.logprobs(model, text[:1], text[1:])
                assert models.gap(expected, seen.logprobs.tolist()) < 1e-4
                assert (seen.version, seen.cached) == (version, 0)

        send_all(other, signal.SIGSTOP)
        fleet.lose(other, EngineError("it is frozen"))
        push(models.make(39))
        assert fleet.clients == [first]
        send_all(other, signal.SIGCONT)
        told: list[str] = []
        wait_until(lambda: told.extend(asyncio.run(fleet.readmit(40))) or told, "it is found")
        assert_names(told[0], other.url, "takes part")
        assert fleet.clients == [first, other]
        push(models.make(40))  # both have the same weights again
        lost.clear()
        gives_up = True

        def freeze() -> None:
            send_all(other, signal.SIGSTOP)
            other.progress_timeout_s = 2.0  # not before: a slow machine is not a loss

        assert_whole(generate(fleet, freeze))
        assert fleet.clients == [first]
        assert lost == [other]
        assert fleet.clock.take_busy_s() > 2.0  # the frozen one was waited for so long
        push(models.make(41))  # does not wait for the frozen one

        back = wait_for_engine(tmp_path, last=other.url)  # it was dropped, so it was replaced
        # read once: what the engine's task writes during a readouterr would be lost
        said = capfd.readouterr().err
        assert said.count(f"engine {other.url} is lost, 1 are left") == 2
        assert_names(said, "engine 0")
        fleet.clients.append(back)
        push(models.make(42))
        assert_whole(generate(fleet, lambda: send_all(back, signal.SIGKILL)))
        assert fleet.clients == [first]
        push(served.model)  # for the tests of others


def test_a_server_is_given_up_when_the_others_have_their_new_weights() -> None:
    """By another thread than the one that sends them, which goes over the list of servers."""
    lost: list[EngineClient] = []
    clients = [EngineClient(f"http://127.0.0.1:{port}") for port in (1, 2)]
    fleet = Fleet(list(clients), min_engines=1, on_loss=lost.append)
    thread = WorkerThread("samples")
    with fleet.paused():
        pending = thread.submit(lambda: fleet.lose(clients[0], EngineError("it is gone")))
        with pytest.raises(TimeoutError):
            pending.result(0.2)
        assert fleet.clients == clients
    pending.result(60)
    assert fleet.clients == clients[1:]
    fleet.lose(clients[0], EngineError("seen by both"))
    assert lost == clients[:1]


def test_only_servers_that_are_not_healthy_are_dropped_while_another_thread_drops_one() -> None:
    """Whoever asks for the probe looks at all of them, and whoever samples has found one lost."""
    gone = EngineClient(f"http://127.0.0.1:{free_port()}")
    fleet = Fleet([], min_engines=1)

    def answer(path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        fleet.lose(gone, EngineError("seen by the one that samples"))
        return 200, {}

    with standing_in(answer) as second, standing_in(lambda *_: (200, {})) as third:
        well = [EngineClient(server.url) for server in (second, third)]
        fleet.clients = [gone, *well]
        assert asyncio.run(fleet.drop_lost(EngineError("the probe failed")))
    assert fleet.clients == well


def test_too_few_engines_end_it_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "RETRY_DELAYS_S", (0.01,))
    gone = EngineClient(f"http://127.0.0.1:{free_port()}", "tiny")
    with pytest.raises(EngineError, match=naming("0 engines", "rollout.min_engines", 1, gone.url)):
        Fleet([gone], min_engines=1).generate_sync(REQUESTS)
    others = [EngineClient(f"http://127.0.0.1:{free_port()}", "tiny") for _ in range(2)]
    with pytest.raises(
        EngineError, match="ConnectionRefusedError"
    ):  # by default no engine may be lost
        Fleet(others).generate_sync(REQUESTS)
