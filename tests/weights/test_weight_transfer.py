"""Verified updates of a real server: good ones take effect, each fault is caught by name."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from aent.inference import vllm_metrics
from aent.inference.client import EngineClient
from aent.inference.completion import Completion, GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from aent.runtime.timeline import TRANSFER, Timeline
from aent.weights import probe
from aent.weights.by_memory import Memories
from aent.weights.manifest import Manifest, expected_manifest
from aent.weights.memory import WeightMemory
from aent.weights.probe import Probe, Seen
from aent.weights.transport import Broadcast, GlooTransport, Transport
from aent.weights.weight_transfer import TransferSettings, WeightSender, WeightSyncError
from inference import models
from inference.stand_in import RESET, standing_in
from plugins.servers import SEQUENCES, Served
from wording import assert_names, naming

pytestmark = pytest.mark.slow

SMALL_BUCKETS = TransferSettings(bucket_bytes=100_000, timeout_s=120.0)
PROMPTS = [[5 * i, *range(i, 20 + i)] for i in range(1, 12)]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"  # [128, 128]


@dataclass
class Link:
    """A connected sender, its server, and the next version."""

    served: Served
    sender: WeightSender
    client: EngineClient
    expected: Manifest
    text: list[int]  # of the probe
    stages: list[WeightMemory] = field(default_factory=list)  # two, where weights pass through them

    async def push(
        self, model: Qwen2ForCausalLM | dict[str, Tensor], sender: WeightSender | None = None
    ) -> int:
        """Push weights under the next version; return it."""
        tensors = model if isinstance(model, dict) else models.named_tensors(model)
        version = await self.client.weight_version() + 1
        sender = sender or self.sender
        if sender.memories is None:
            await sender.push(iter(tensors.items()), version, self.expected)
            return version
        for stage in self.stages:
            stage.begin()
        second = set(self.stages[1].address.names)
        parts = [[(n, t) for n, t in tensors.items() if (n in second) == last] for last in (0, 1)]
        other = asyncio.create_task(asyncio.to_thread(self.stages[1].write, parts[1]))
        try:
            await sender.push(iter(parts[0]), version, self.expected)
        finally:
            await other
        return version

    async def probe(self) -> Seen:
        return await probe.ask(self.client, self.text, 32)

    def gap(self, model: Qwen2ForCausalLM, seen: Seen) -> float:
        return models.gap(self.logprobs(model).tolist(), seen.logprobs.tolist())

    def logprobs(self, model: Qwen2ForCausalLM) -> Tensor:
        return torch.tensor(models.logprobs(model, self.text[:1], self.text[1:]))


async def connected(served: Served, way: str) -> Link:
    client = served.engine.client()
    sender = WeightSender([client], SMALL_BUCKETS)
    expected = expected_manifest(served.folder)
    stages = []
    if way == "memory":
        names = list(models.named_tensors(served.model))
        half = len(names) // 2
        for part in (names[:half], names[half:]):
            stages.append(WeightMemory.make([(name, expected[name]) for name in part]))
        addresses = [stage.address for stage in stages]
        assert not await sender.share(Memories.of(stages[0], addresses))
    await sender.connect()
    text = probe.text_of(PROMPTS, probe.length_of(32, models.MAX_LENGTH))
    assert len(text) == probe.TOKENS
    return Link(served, sender, client, expected, text, stages)


@pytest.fixture(params=["memory"])
def link(served: Served, request: pytest.FixtureRequest) -> Iterator[Link]:
    """Afterwards the server has its folder's weights again, for the tests of others."""
    link = asyncio.run(connected(served, request.param))
    yield link
    for stage in link.stages:
        stage.close()
    link = asyncio.run(connected(served, "network"))
    asyncio.run(link.push(served.model))


by_either_way = pytest.mark.parametrize("link", ["memory", "network"], indirect=True)
by_network = pytest.mark.parametrize("link", ["network"], indirect=True)


@by_either_way
def test_update_takes_effect_and_labels_every_token(link: Link, tmp_path: Path) -> None:
    link.sender.timeline = Timeline(tmp_path / "timeline.jsonl")

    async def scenario() -> None:
        for seed in (11, 12):
            model = models.make(seed)
            old = await link.push(models.make(seed + 100))
            before = await link.probe()  # fills the cache with keys of the old weights
            version = await link.push(model)
            after = await link.probe()
            assert link.gap(model, after) < 1e-4
            assert link.gap(model, before) > 0.1
            assert (before.version, before.cached) == (old, 0)
            assert (after.version, after.cached) == (version, 0)
            sampled = await Fleet([link.client]).generate([GenerationRequest([7, 8], 8, seed=1)])
            expected = models.logprobs(model, [7, 8], sampled[0].token_ids)
            assert models.gap(sampled[0].logprobs, expected) < 1e-4

    asyncio.run(scenario())
    link.sender.timeline.write()
    drawn = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert {event["track"] for event in drawn} == {TRANSFER}
    parts = Counter(event["name"] for event in drawn)
    buckets = [event for event in drawn if event["name"] == "bucket"]
    if link.stages:
        assert parts == dict.fromkeys(("pause", "write", "load", "verify", "resume"), 4)
    else:
        assert parts == {"pause": 4, "verify": 4, "resume": 4, "bucket": len(buckets)}
        sent = sum(tensor.nbytes for tensor in models.named_tensors(link.served.model).values())
        assert sum(event["mib"] for event in buckets) == pytest.approx(4 * sent / 2**20, abs=0.01)
        assert sum(event["tensors"] for event in buckets) == 4 * len(link.expected)


def in_flight(client: EngineClient) -> tuple[asyncio.Task[list[Completion]], asyncio.Event]:
    """Long requests behind a short one, and an event: the short one has ended."""
    requests = [GenerationRequest([i], 300 if i else 4, seed=i) for i in range(24)]
    first_done = asyncio.Event()
    return asyncio.create_task(Fleet([client]).generate(requests, first_done.set)), first_done


def test_update_with_requests_in_flight(link: Link) -> None:
    async def caught(attempt: int) -> bool:
        old = await link.push(models.make(13 + 100 * attempt))
        model = models.make(14 + 100 * attempt)
        pending, first_done = in_flight(link.client)
        await asyncio.wait_for(first_done.wait(), 300)
        new = await link.push(model)
        done = await pending
        for i, completion in enumerate(done):
            assert len(completion.token_ids) == (300 if i else 4)
            assert completion.versions == sorted(completion.versions)
            assert set(completion.versions) <= {old, new}
            if new not in completion.versions:
                continue
            # what the new weights wrote, they wrote with keys and values of their own
            start = completion.versions.index(new)
            prompt = [i, *completion.token_ids[:start]]
            expected = models.logprobs(model, prompt, completion.token_ids[start:])
            assert models.gap(completion.logprobs[start:], expected) < 1e-3
        return any(set(c.versions) == {old, new} for c in done)

    # on a busy machine all may have ended before the update begins: then once more
    assert any(asyncio.run(caught(attempt)) for attempt in range(10))


def test_the_probe_waits_for_a_place_and_not_behind_requests_that_wait(link: Link) -> None:
    """In a first come first served order all of them would be computed before the probe is."""

    async def scenario() -> None:
        short = [GenerationRequest([i], 20, seed=i) for i in range(SEQUENCES)]
        long = [GenerationRequest([i], 300, seed=i) for i in range(60)]
        client = replace(link.client, concurrency=len(short) + len(long))
        async with Fleet([client]).open() as submit:
            asked = [submit(request) for request in short + long]
            while vllm_metrics.read(await client.metrics()).get("waiting", 0.0) == 0.0:
                await asyncio.sleep(0.02)
            seen = await link.probe()
            assert sum(not one.done() for one in asked) > SEQUENCES  # more than are computed
        assert seen.version == await client.weight_version()

    asyncio.run(scenario())


def test_an_engine_that_is_lost_in_mid_transfer_costs_the_others_one_update(link: Link) -> None:
    """Through memory: what the others have loaded of the update that broke does no harm."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any] | object:
        if path == "/collective_rpc":
            return 200, {"results": [[]]}
        return RESET if path == "/update_weights" else (200, {"weight_version": "default"})

    old = asyncio.run(link.push(models.make(35)))
    with standing_in(answer) as lost:
        link.sender.clients.append(EngineClient(lost.url))
        with pytest.raises(EngineError, match=lost.url):
            asyncio.run(link.push(models.make(36)))
        assert "/update_weights" in lost.asked
    link.sender.clients.pop()
    assert asyncio.run(link.client.weight_version()) == old
    assert asyncio.run(link.client.call("GET", "/is_paused"))["is_paused"]
    model = models.make(37)
    version = asyncio.run(link.push(model))
    seen = asyncio.run(link.probe())
    assert (seen.version, seen.cached) == (version, 0)
    assert link.gap(model, seen) < 1e-4


def test_tensors_are_consumed_once_and_to_the_end_even_on_failure(link: Link) -> None:
    tensors = models.named_tensors(models.make(15))
    seen: list[str] = []

    def export() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            seen.append(name)
            yield name, tensor

    with pytest.raises(WeightSyncError, match=naming("version -1", link.client.url)):
        asyncio.run(link.sender.push(export(), -1, link.expected))
    assert seen == list(tensors)


def test_stale_version_is_named(link: Link) -> None:
    async def scenario() -> None:
        version = await link.push(models.make(16))
        tensors = models.named_tensors(models.make(17))
        with pytest.raises(WeightSyncError, match=naming(f"version {version}", link.client.url)):
            await link.sender.push(iter(tensors.items()), version, link.expected)
        assert link.gap(models.make(16), await link.probe()) < 1e-4  # still serving, unchanged

    asyncio.run(scenario())


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if n != name}


@by_either_way
@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (lambda t: without(t, Q_PROJ), (Q_PROJ,)),
        (lambda t: t | {"model.extra": torch.zeros(2)}, ("model.extra",)),
        (
            lambda t: t | {"lm_head.weight": t["lm_head.weight"].T},
            ("lm_head.weight", "[128, 256]", "[256, 128]"),
        ),
        (lambda t: t | {Q_PROJ: t[Q_PROJ].bfloat16()}, (Q_PROJ, "bfloat16")),
    ],
)
def test_faulty_export_is_named_and_the_engine_stays_paused(
    link: Link, fault, names: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        model = models.make(18)
        before = await link.client.weight_version()
        with pytest.raises(WeightSyncError, match=naming(*names)):
            await link.push(fault(models.named_tensors(model)))
        assert (await link.client.call("GET", "/is_paused"))["is_paused"]
        assert await link.client.weight_version() == before
        await link.push(model)  # a good one resumes
        assert not (await link.client.call("GET", "/is_paused"))["is_paused"]
        assert link.gap(model, await link.probe()) < 1e-4

    asyncio.run(scenario())


def test_transposed_export_of_known_weights_is_named(link: Link) -> None:
    """The first push carries the folder's own weights: their checksums are known."""
    link.expected = expected_manifest(link.served.folder, content=True)
    tensors = models.named_tensors(link.served.model)

    async def scenario() -> None:
        with pytest.raises(WeightSyncError, match=naming("export", Q_PROJ, "checksum")):
            await link.push(tensors | {Q_PROJ: tensors[Q_PROJ].T})
        await link.push(tensors)
        assert link.gap(link.served.model, await link.probe()) < 1e-4

    asyncio.run(scenario())


@dataclass
class TransposingWire:
    """Transposes the first square matrix that passes."""

    wire: Transport
    done: bool = False

    def broadcast(self, tensor: Tensor) -> Broadcast:
        if not self.done and tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]:
            self.done, tensor = True, tensor.T.contiguous()
        return self.wire.broadcast(tensor)

    def close(self) -> None:
        self.wire.close()


class TransposingMemory(WeightMemory):
    """Has the first square matrix transposed in its place."""

    def put(self, place: int, tensor: Tensor) -> None:
        if self.address.names[place] == "model.layers.0.self_attn.q_proj.weight":
            tensor = tensor.T
        super().put(place, tensor)


@by_either_way
def test_transposed_in_transit_is_named(link: Link) -> None:
    async def scenario() -> None:
        good, memories = link.sender.transport, link.sender.memories
        if memories is None:
            assert good is not None
            link.sender.transport = TransposingWire(good)
        else:
            own = link.stages[0]
            link.stages[0] = TransposingMemory(own.address, own.mapped, own.update)
            link.sender.memories = replace(memories, own=link.stages[0])
        first = "model.layers.0.self_attn.q_proj.weight"
        with pytest.raises(
            WeightSyncError, match=naming(link.client.url, "worker 0", first, "checksum")
        ):
            await link.push(models.make(19))
        link.sender.transport, link.sender.memories = good, memories
        if memories is not None:
            memories.own.update = link.stages[0].update
            link.stages[0] = memories.own
        await link.push(models.make(19))

    asyncio.run(scenario())


class Forgetful(WeightSender):
    """Does not reset the cache."""

    async def reset_caches(self) -> None:
        pass


def test_skipped_cache_reset_is_seen_by_the_probe_and_named(link: Link) -> None:
    async def scenario() -> None:
        forgetful = Forgetful([link.client], SMALL_BUCKETS)
        await forgetful.connect()
        await link.probe()
        model = models.make(20)
        version = await link.push(model, forgetful)
        seen = await link.probe()
        assert seen.cached > 0
        (fault,) = Probe(link.text, 32, 1e-3).judge([seen], link.logprobs(model), version)
        assert_names(fault, "stale", seen.cached)

    asyncio.run(scenario())


def test_other_weights_are_told_from_a_stale_cache(link: Link) -> None:
    async def scenario() -> None:
        version = await link.push(models.make(21))
        seen = await link.probe()
        (fault,) = Probe(link.text, 32, 1e-3).judge([seen], link.logprobs(models.make(22)), version)
        assert_names(fault, "rollout.probe_tolerance")
        assert "stale" not in fault

    asyncio.run(scenario())


def test_weights_that_are_not_numbers_cannot_be_sampled_from(link: Link) -> None:
    async def scenario() -> None:
        tensors = models.named_tensors(models.make(23))
        broken = tensors | {"model.norm.weight": torch.full((128,), float("nan"))}
        await link.push(broken)  # it arrives as it is
        with pytest.raises(RuntimeError, match=r"finite|\b500\b"):
            await Fleet([link.client]).generate([GenerationRequest([7, 8], 4, seed=1)])
        await link.push(tensors)
        assert link.gap(models.make(23), await link.probe()) < 1e-4

    asyncio.run(scenario())


@by_network
def test_a_new_connection_takes_the_place_of_the_old_one(link: Link) -> None:
    async def scenario() -> None:
        old = link.sender.transport
        assert isinstance(old, GlooTransport)
        await link.sender.connect()
        assert link.sender.transport is not old
        assert old.group is None
        await link.push(models.make(24))
        assert link.gap(models.make(24), await link.probe()) < 1e-4

    asyncio.run(scenario())
