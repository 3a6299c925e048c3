"""Weights from every pipeline stage to engines on the same machine (``weights.memory``), as the
trainer's rank 0 directs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from aent.inference.client import EngineClient
from aent.runtime.timeline import TRANSFER, Timeline
from aent.weights import waiting
from aent.weights.manifest import Manifest
from aent.weights.memory import ExportError, OpenedMemory, WeightMemory, offered_by
from aent.weights.memory_layout import Address
from aent.weights.transport import in_daemon_thread
from aent.weights.waiting import first_failure


@dataclass(frozen=True)
class Memories:
    """The memories of the trainer's pipeline stages, on rank 0."""

    own: WeightMemory
    everyones: list[OpenedMemory]  # its own among them
    addresses: str  # of all of them, JSON

    @staticmethod
    def of(own: WeightMemory, addresses: list[Address]) -> Memories:
        """Raises OSError or ValueError as ``OpenedMemory.open``."""
        opened = [OpenedMemory.open(address) for address in addresses]
        return Memories(own, opened, json.dumps([asdict(address) for address in addresses]))


async def refusal(clients: Sequence[EngineClient], memories: Memories, timeout_s: float) -> str:
    """Have every worker of every engine open the memories; return one sentence that says why one
    cannot, or an empty string."""
    body = {"method": "aent_open_memories", "kwargs": {"addresses": memories.addresses}}
    answers = await asyncio.gather(
        *(
            c.value("POST", "/collective_rpc", "results", body=body, timeout_s=timeout_s)
            for c in clients
        )
    )
    for client, results in zip(clients, answers):
        for worker, reasons in enumerate(results):
            if reasons:
                return (
                    f"engine {client.url}, worker {worker}, cannot open the trainer's memory: "
                    f"{reasons[0]}"
                )
    return ""


async def send_shared(
    clients: Sequence[EngineClient],
    memories: Memories,
    named_tensors: Iterator[tuple[str, Tensor]],
    timeout_s: float,
    timeline: Timeline,
) -> Manifest:
    """Write the tensors of our own stage while the others write theirs and the engines load what is
    there; return what all stages offered, by name. Our writing is an event of ``timeline``, and so
    is the engines' loading.

    Raises EngineError, or ExportError if an export is not as planned or does not arrive in time.
    """
    update = memories.own.update
    info = {"update": update, "timeout_s": timeout_s}
    calls = [
        asyncio.ensure_future(
            c.call("POST", "/update_weights", {"update_info": info}, timeout_s=timeout_s)
        )
        for c in clients
    ]

    def write() -> None:
        with timeline.span("write", TRANSFER):
            memories.own.write(named_tensors)

    writing = in_daemon_thread(write)
    try:
        with timeline.span("load", TRANSFER):
            await first_failure(writing, calls, "the trainer's weights were not written")
            await asyncio.gather(*calls)
        async with asyncio.timeout(timeout_s):
            while not all(memory.is_whole(update) for memory in memories.everyones):
                await asyncio.sleep(waiting.POLL_S)
        return offered_by(memories.everyones)
    except TimeoutError:
        raise ExportError(f"not every stage's is there after {timeout_s:.0f} s") from None
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.wait([writing])  # only the writer may still use the tensors
