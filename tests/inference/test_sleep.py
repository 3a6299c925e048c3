"""Engines asleep: a real server says in which order it wakes, a stand-in enforces it, and vLLM's
source says what happens on a GPU."""

from __future__ import annotations

import ast
import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aent.inference import sleep
from aent.inference.client import EngineClient
from aent.inference.completion import GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from aent.weights.weight_transfer import TransferSettings, WeightSender
from inference.sleepy import SleepyEngine
from inference.stand_in import standing_in
from plugins.servers import Served

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import contracts

TIMEOUT_S = 300.0


@contextmanager
def sleepy(room: bool = True) -> Iterator[tuple[SleepyEngine, EngineClient]]:
    engine = SleepyEngine(room=lambda: room)
    with standing_in(engine.answer) as server:
        yield engine, EngineClient(server.url)


@pytest.mark.slow
def test_a_real_server_wakes_in_two_parts_and_answers_again(served: Served) -> None:
    """vLLM on a CPU keeps its memory and takes part in everything else."""
    client = served.engine.client()
    question = [GenerationRequest([7, 8], 4, seed=1)]

    async def scenario() -> None:
        before = await Fleet([client]).generate(question)
        for level in (sleep.KEEP_WEIGHTS, sleep.DROP_WEIGHTS):
            await sleep.fall_asleep([client], level, TIMEOUT_S)
            await sleep.fall_asleep([client], level, TIMEOUT_S)  # it sleeps on
            assert await client.is_healthy()
            with pytest.raises(EngineError, match=r"not awake.*sleeping"):
                await sleep.wake([client], "kv_cache", TIMEOUT_S)
            for part in sleep.PARTS:
                await sleep.wake([client], part, TIMEOUT_S)
            await sleep.wake([client], "weights", TIMEOUT_S)  # it is awake: nothing happens
            again = await Fleet([client]).generate(question)
            assert again[0].token_ids == before[0].token_ids

    asyncio.run(scenario())


def test_an_engine_that_does_not_sleep_is_named() -> None:
    async def scenario(url: str) -> None:
        with pytest.raises(EngineError, match=f"{url} did not fall asleep"):
            await sleep.fall_asleep([EngineClient(url)], sleep.DROP_WEIGHTS, TIMEOUT_S)

    with standing_in(lambda path, sent: (200, {"is_sleeping": False})) as server:
        asyncio.run(scenario(server.url))


@pytest.mark.parametrize("asleep", [False, True])
def test_an_update_out_of_order_is_refused_by_the_stand_in(asleep: bool) -> None:
    """Without its weights' memory, with that of its cache awake, or without room."""

    async def scenario(engine: SleepyEngine, client: EngineClient) -> None:
        sender = WeightSender([client], TransferSettings(timeout_s=TIMEOUT_S, asleep=asleep))
        if asleep:  # it was not sent to sleep: the cache takes the room
            with pytest.raises(EngineError, match="awake"):
                await sender.begin()
            return
        await sleep.fall_asleep([client], sleep.DROP_WEIGHTS, TIMEOUT_S)
        with pytest.raises(EngineError, match="awake"):
            await sender.begin()
        with pytest.raises(EngineError, match="without its memory"):
            await sender.resume()

    with sleepy() as (engine, client):
        asyncio.run(scenario(engine, client))


def test_an_engine_does_not_wake_before_the_trainer_has_made_room() -> None:
    async def scenario(engine: SleepyEngine, client: EngineClient) -> None:
        await sleep.fall_asleep([client], sleep.DROP_WEIGHTS, TIMEOUT_S)
        with pytest.raises(EngineError, match="no room"):
            await sleep.wake([client], "weights", TIMEOUT_S)
        assert engine.awake == frozenset()

    with sleepy(room=False) as (engine, client):
        asyncio.run(scenario(engine, client))


def source(file: str, name: str) -> str:
    """A function (``Class.function``) or a constant of vLLM's source, without its comments."""
    tree: ast.AST = ast.parse((contracts.installed_vllm() / "vllm" / file).read_text())
    for part in name.split("."):
        tree = next(
            node
            for node in getattr(tree, "body", ())
            if getattr(node, "name", None) == part
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == part)
        )
    return ast.unparse(tree)


@pytest.mark.parametrize(
    ("file", "name", "words"),
    [
        # both parts sleep at once; a part that is awake does not wake again
        ("v1/executor/abstract.py", "SLEEP_TAGS", ["frozenset(('weights', 'kv_cache'))"]),
        ("v1/executor/abstract.py", "Executor.sleep", ["self.sleeping_tags |= SLEEP_TAGS"]),
        (
            "v1/executor/abstract.py",
            "Executor.wake_up",
            ["if tag not in self.sleeping_tags", "self.sleeping_tags.remove(tag)"],
        ),
        # requests are aborted before, and answered again only after the last part
        (
            "v1/engine/core.py",
            "EngineCore.sleep",
            ["self.pause_scheduler(mode=mode", "model_executor.sleep(level)"],
        ),
        (
            "v1/engine/core.py",
            "EngineCore.wake_up",
            [
                "fully_awake = not self.model_executor.is_sleeping",
                "if fully_awake:\n        self.resume_scheduler()",
            ],
        ),
        # weights are kept only at level 1; buffers, which are not sent, also at level 2
        (
            "device_allocator/sleep_mode_backend.py",
            "CuMemBackend.suspend",
            ["if level == 1:\n        offload_tags = ('weights', *offload_tags)"],
        ),
        (
            "v1/worker/gpu_worker.py",
            "Worker.sleep",
            ["if level == 2:", "for name, buffer in model.named_buffers()", "suspend(level)"],
        ),
        (
            "v1/worker/gpu_worker.py",
            "Worker.wake_up",
            ["resume(tags)", "tags is None or 'weights' in tags", "buffer.data.copy_("],
        ),
        (
            "device_allocator/cumem.py",
            "CuMemAllocator.wake_up",
            ["data.tag in tags", "create_and_map(handle)"],
        ),
        # the mode must be set at the start; new weights are copied into the same memory
        (
            "v1/worker/gpu_worker.py",
            "Worker._maybe_get_memory_pool_context",
            ["not self.vllm_config.model_config.enable_cumem_allocator"],
        ),
        ("config/model.py", "ModelConfig.__post_init__", ["self.enable_cumem_allocator = True"]),
        (
            "model_executor/model_loader/reload/layerwise.py",
            "_layerwise_process",
            ["_copy_and_restore_kernel_tensors(layer, info)"],
        ),
    ],
)
def test_on_a_gpu_vllm_does_what_is_relied_on(file: str, name: str, words: list[str]) -> None:
    text = source(file, name)
    assert not [each for each in words if each not in text]
