"""The cost of a weight update, through shared memory and by network, interleaved in one run.

    .venv/bin/python benchmarks/weight_sync.py MODEL_FOLDER [--rounds 5]

A vLLM server on CPUs gets the folder's weights from two processes, each with half of them, like two
pipeline stages: by network, all of them through the first (the old way); through memory, from both.
Every update is verified as in a run. Prints seconds and processor seconds of all processes
together, and what they were spent on. MODEL_FOLDER: a Hugging Face folder such as those that a run
keeps in ~/.cache/aent.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from aent.inference import engine, registry
from aent.inference.client import EngineClient
from aent.runtime.network import held_port
from aent.weights.by_memory import Memories
from aent.weights.manifest import Manifest, TensorSpec, expected_manifest
from aent.weights.memory import WeightMemory
from aent.weights.weight_transfer import TransferSettings, WeightSender

DTYPE = "float32"
Weights = dict[str, Tensor]


def halves(folder: Path) -> list[Weights]:
    wanted = expected_manifest(folder, DTYPE)
    stored: Weights = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    weights = {name: stored[name].to(getattr(torch, DTYPE)) for name in wanted}
    parts: list[Weights] = [{}, {}]
    half = sum(t.nbytes for t in weights.values()) / 2
    for name, tensor in weights.items():
        parts[sum(t.nbytes for t in parts[0].values()) >= half][name] = tensor
    return parts


def planned(part: Weights) -> list[tuple[str, TensorSpec]]:
    return [(n, replace(TensorSpec.of(t), checksum=None)) for n, t in part.items()]


def join(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


def second_stage(folder: Path, port: int, pipe: Connection) -> None:
    """The second process: on request, it writes, or sends to the first."""
    part = halves(folder)[1]
    memory = WeightMemory.make(planned(part))
    join(1, port)
    pipe.send(memory.address)
    while (way := pipe.recv()) != "end":
        if way == "memory":
            memory.begin()
            memory.write(part.items())
        else:
            for tensor in part.values():
                dist.send(tensor, 0)
        pipe.send("done")


def through_first(parts: list[Weights]) -> Iterator[tuple[str, Tensor]]:
    yield from parts[0].items()
    for name, tensor in parts[1].items():
        received = torch.empty_like(tensor)
        dist.recv(received, 1)
        yield name, received


class Timed(WeightSender):
    """Records how long the parts of an update take."""

    def __init__(self, client: EngineClient) -> None:
        super().__init__([client], TransferSettings())
        self.seconds: dict[str, list[float]] = defaultdict(list)

    async def _timed(self, name: str, work):
        begin = time.perf_counter()
        result = await work
        self.seconds[name].append(time.perf_counter() - begin)
        return result

    async def begin(self):
        return await self._timed("pause, start", super().begin())

    async def send(self, *arguments):
        return await self._timed("tensors", super().send(*arguments))

    async def verify(self, *arguments):
        return await self._timed("verify", super().verify(*arguments))

    async def finish(self, *arguments):
        return await self._timed("finish", super().finish(*arguments))

    async def reset_caches(self):
        return await self._timed("reset the cache", super().reset_caches())


def measure(folder: Path, rounds: int, server: engine.Engine) -> None:
    parts, held = halves(folder), held_port()
    port = held.getsockname()[1]
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(
        target=second_stage, args=(folder, port, theirs), daemon=True
    )
    other.start()
    join(0, port)
    memory = WeightMemory.make(planned(parts[0]))
    memories = Memories.of(memory, [memory.address, ours.recv()])
    expected: Manifest = expected_manifest(folder, DTYPE)
    root = psutil.Process(server.child.process.pid)
    processes = [psutil.Process(), psutil.Process(other.pid), root, *root.children(recursive=True)]
    ways = {"network": Timed(server.client()), "memory": Timed(server.client())}
    results: dict[str, list[tuple[float, float]]] = defaultdict(list)

    async def update(way: str, version: int) -> None:
        sender = ways[way]
        sender.version = version - 1
        if way == "memory":
            assert not await sender.share(memories)
        await sender.connect()
        before = sum(sum(p.cpu_times()[:2]) for p in processes)
        begin = time.perf_counter()
        ours.send(way)
        if way == "memory":
            memory.begin()
        weights = through_first(parts) if way == "network" else iter(parts[0].items())
        await sender.push(weights, version, expected)
        wall = time.perf_counter() - begin
        assert ours.recv() == "done"
        spent = sum(sum(p.cpu_times()[:2]) for p in processes) - before
        results[way].append((wall, spent))
        print(f"  {way:8} {wall:.2f} s, {spent:.2f} s of processor time", flush=True)

    for version in range(2 * rounds + 2):
        asyncio.run(update(("network", "memory")[version % 2], version))
    ours.send("end")
    size = sum(t.nbytes for part in parts for t in part.values())
    print(f"{size / 1e6:.0f} MB; medians of {rounds} updates, after a first of each:")
    for way, sender in ways.items():
        wall, spent = (statistics.median(values) for values in zip(*results[way][1:]))
        shares = ", ".join(f"{k} {statistics.median(v[1:]):.2f}" for k, v in sender.seconds.items())
        print(f"{way:8} {wall:.2f} s ({shares}), {spent:.2f} s of processor time")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        server = engine.start(
            engine.EngineSettings(
                model_path=given.folder,
                served_name="measured",
                log_path=folder / "engine.log",
                max_model_len=256,
                kv_cache_gib=0.2,
                token_path=registry.make_token(folder),
            )
        )
        try:
            server.wait_ready(900.0)
            measure(given.folder, given.rounds, server)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
