"""New weights for every engine, verified: no engine samples with weights that arrived incomplete.

Sequence of one update: pause (requests in flight are kept), start, the tensors in buckets, compare
what arrived with what was sent and with what the model needs, finish, version, reset of the prefix
cache, resume. Engines that share the trainer's GPUs sleep until then: the memory of their weights
wakes before the pause, that of their cache in place of the resumption. A failed comparison leaves
the engines paused; the next good update resumes them.
What cannot be seen in transit (an exporter that is wrong, a stale cache, an engine computing with
old copies) is for the probe (``weights.probe``).

This is the sending side, on the trainer's rank 0; it does not import vLLM. Routes of vLLM 0.32.0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from torch import Tensor

from aent.inference import sleep
from aent.inference.client import EngineClient
from aent.inference.completion import INITIAL_VERSION
from aent.inference.http import EngineError
from aent.runtime.timeline import TRANSFER, Timeline
from aent.weights import nccl
from aent.weights.by_memory import Memories, refusal, send_shared
from aent.weights.by_network import join_group, send_all
from aent.weights.manifest import Manifest, TensorSpec, differences
from aent.weights.memory import ExportError
from aent.weights.transport import Transport

FAULTS_SHOWN = 8


class WeightSyncError(RuntimeError):
    """An engine does not have the weights that it should; the message says which tensor, cache or
    version."""


@dataclass(frozen=True)
class TransferSettings:
    """How weights are sent."""

    backend: Literal["gloo", "nccl"] = "gloo"
    bucket_bytes: int = 64 * 2**20  # tensors sent with one call; two buckets are held at once
    timeout_s: float = 120.0  # for each call and each bucket
    master_address: str = "127.0.0.1"  # of this process, as the engines reach it
    asleep: bool = False  # the engines sleep before an update


@dataclass
class WeightSender:
    """Rank 0's end of the connection to all engines."""

    clients: list[EngineClient]
    settings: TransferSettings = TransferSettings()
    transport: Transport | None = field(default=None, init=False)
    memories: Memories | None = field(default=None, init=False)  # None: weights go over the network
    joined: list[str] = field(default_factory=list, init=False)  # addresses of connected engines
    version: int | None = field(default=None, init=False)  # of the last update
    timeline: Timeline = field(default_factory=Timeline)  # of the parts of each update
    # of one that has failed: engines that it had reached to its end may have it already
    unfinished: int | None = field(default=None, init=False)

    async def connect(self) -> None:
        """Form a group with every worker of every engine, replacing an earlier one, or have each
        open the trainer's memories; ``push`` calls it if the engines have changed.

        Raises EngineError if an engine does not join within ``timeout_s``.
        """
        self.disconnect()
        await self._rpc("aent_reset_transfer")
        if self.memories is not None:
            if reason := await refusal(self.clients, self.memories, self.settings.timeout_s):
                raise EngineError(reason)
            self.joined = [client.url for client in self.clients]
            return
        if self.settings.backend == "nccl":
            await self.check_nccl()
        sizes = await self._values("GET", "/get_world_size", "world_size")
        self.transport = await join_group(
            self.clients,
            sizes,
            self.settings.backend,
            self.settings.master_address,
            self.settings.timeout_s,
        )
        self.joined = [client.url for client in self.clients]

    def disconnect(self) -> None:
        """Leave the group: engines that wait in it for a lost one get an error."""
        transport, self.transport, self.joined = self.transport, None, []
        if transport is not None:
            transport.close()

    @property
    def is_shared(self) -> bool:
        """Whether weights are sent through shared memory."""
        return self.memories is not None

    async def share(self, memories: Memories) -> str:
        """Send weights through these memories from now on if every worker of every engine can open
        them; else return the reason, in one sentence."""
        await self._rpc("aent_reset_transfer")
        reason = await refusal(self.clients, memories, self.settings.timeout_s)
        self.memories = None if reason else memories
        return reason

    async def check_nccl(self) -> None:
        """Raise EngineError naming an engine whose NCCL has another version than ours, patch level
        included: NCCL would refuse the group. Not run with two GPUs, since there were none.
        """
        own = nccl.loaded_version()
        for client, results in zip(self.clients, await self._rpc("aent_nccl_version")):
            for worker, theirs in enumerate(results):
                if tuple(theirs) != own:
                    raise client.error(
                        f", worker {worker}: NCCL {'.'.join(map(str, theirs))}, the trainer has "
                        f"{'.'.join(map(str, own))}; both must have the same version "
                        "(VLLM_NCCL_SO_PATH names the engine's library)"
                    )

    async def push(
        self, named_tensors: Iterable[tuple[str, Tensor]], version: int, expected: Manifest | None
    ) -> None:
        """Replace the weights of every engine.

        Args:
            named_tensors: Hugging Face names and full tensors. Always consumed once and to the end,
                even if the update fails, because other ranks iterate in lockstep. A separate thread
                iterates. Each tensor must keep its value for two buckets.
            version: label of the new weights, above every engine's (at first any: a resumed run
                may be behind engines that it did not start).
            expected: what the model needs (``expected_manifest``); None: not compared.

        Raises:
            WeightSyncError: names what did not arrive as it should; the engines stay paused.
            EngineError: an engine failed or did not answer in time. If it has left ``clients``,
                the whole update can be sent again to the others.
        """
        rest = iter(named_tensors)
        try:
            same = await self.check_version(version)
            if not same or self.joined != [client.url for client in self.clients]:
                await self.connect()  # a broadcast would wait for engines that are not connected
            self.unfinished = version
            with self._drawn("pause"):
                await self.begin()
            offered = await self.send(rest, expected)
            with self._drawn("verify"):
                await self.verify(offered, expected)
            with self._drawn("resume"):
                await self.finish(version)
                await self.reset_caches()
                await self.resume()
            self.version, self.unfinished = version, None
        except EngineError:
            self.disconnect()
            raise
        finally:
            for _ in rest:
                pass

    def _drawn(self, part: str) -> AbstractContextManager[None]:
        return self.timeline.span(part, TRANSFER)

    async def check_version(self, version: int) -> bool:
        """Whether every engine has the weights of the last update: one that was restarted at its
        old address has not.

        Raises WeightSyncError unless ``version`` is newer than theirs, or that of an update that
        failed.
        """
        same = True
        for client in self.clients:
            current = await client.weight_version()
            begun = version == current == self.unfinished
            if not begun and version <= (INITIAL_VERSION if self.version is None else current):
                raise WeightSyncError(
                    f"stale weight version {version}: {client.url} is at version {current}"
                )
            same = same and self.version in (None, current)
        return same

    async def begin(self) -> None:
        """Pause generation, keeping what is in flight, and open the update."""
        if self.settings.asleep:
            await sleep.wake(self.clients, "weights", self.settings.timeout_s)
        # the cache is cleared once, after the update, where the answer says whether it was
        await self._all("POST", "/pause", params={"mode": "keep", "clear_cache": False})
        await self._all("POST", "/start_weight_update")

    async def send(
        self, named_tensors: Iterator[tuple[str, Tensor]], expected: Manifest | None
    ) -> Manifest:
        """Have the engines load every tensor; return the offered tensors, by name.

        Raises EngineError; also WeightSyncError, after closing the update, if an export cannot be
        sent.
        """
        clients, settings = self.clients, self.settings
        try:
            if self.memories is not None:
                return await send_shared(
                    clients, self.memories, named_tensors, settings.timeout_s, self.timeline
                )
            if self.transport is None:
                raise RuntimeError("push before connect")
            return await send_all(
                clients,
                self.transport,
                named_tensors,
                expected,
                settings.bucket_bytes,
                settings.timeout_s,
                self.timeline,
            )
        except ExportError as error:
            await self._refuse([f"the trainer's export: {error}"])

    async def verify(self, offered: Manifest, expected: Manifest | None) -> None:
        """Compare what the trainer offered with what the model needs, and what every worker
        received with what was offered.

        Raises WeightSyncError naming each tensor, after closing the update without a new version.
        """
        faults = [] if expected is None else [
            f"the trainer's export: {d}" for d in differences(expected, offered)
        ]  # fmt: skip
        if not faults:
            for client, results in zip(self.clients, await self._rpc("aent_received")):
                for rank, tensors in enumerate(results):
                    received = {n: TensorSpec(tuple(s), d, c) for n, (s, d, c) in tensors.items()}
                    where = f"{client.url}, worker {rank}"
                    faults += [f"{where}: {d}" for d in differences(offered, received)]
        if faults:
            await self._refuse(faults)

    async def _refuse(self, faults: list[str]) -> NoReturn:
        """Close the update without a new version, and raise the reasons."""
        await self._all("POST", "/finish_weight_update", {})
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise WeightSyncError("weight update: " + "; ".join(faults[:FAULTS_SHOWN]) + more)

    async def finish(self, version: int) -> None:
        """Close the update; every engine must then report ``version``."""
        await self._all("POST", "/finish_weight_update", {"weight_version": str(version)})
        for client in self.clients:
            current = await client.weight_version()
            if current != version:
                raise WeightSyncError(
                    f"{client.url} says weight version {current} after an update to {version}"
                )

    async def reset_caches(self) -> None:
        """Drop keys and values of the old weights, including those of requests in flight."""
        answers = await self._values(
            "POST", "/reset_prefix_cache", "success", params={"reset_running_requests": True}
        )
        for client, was_reset in zip(self.clients, answers):
            if not was_reset:
                raise WeightSyncError(f"{client.url}: the prefix cache was not reset")

    async def resume(self) -> None:
        """Have every engine answer requests again."""
        if self.settings.asleep:  # vLLM resumes one that is wholly awake
            await sleep.wake(self.clients, "kv_cache", self.settings.timeout_s)
        else:
            await self._all("POST", "/resume")

    async def _all(
        self, method: str, path: str, body: Any = None, *, params: Any = None
    ) -> list[Any]:
        """The answer of every engine."""
        timeout_s = self.settings.timeout_s
        calls = [
            c.call(method, path, body, params=params, timeout_s=timeout_s) for c in self.clients
        ]
        return await asyncio.gather(*calls)

    async def _values(self, method: str, path: str, key: str, **options: Any) -> list[Any]:
        """The value of ``key`` in every engine's answer."""
        options["timeout_s"] = self.settings.timeout_s
        return await asyncio.gather(*(c.value(method, path, key, **options) for c in self.clients))

    async def _rpc(self, method: str) -> list[list[Any]]:
        """The results of this method of our extension, from every worker of every engine."""
        return await self._values("POST", "/collective_rpc", "results", body={"method": method})
