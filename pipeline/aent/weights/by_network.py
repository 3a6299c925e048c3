"""Weights from the trainer's rank 0 to the engines by broadcast, in one group with all of their
workers, one call per bucket of tensors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from aent.inference.client import EngineClient
from aent.inference.http import EngineError
from aent.runtime.timeline import TRANSFER, Timeline
from aent.weights import waiting
from aent.weights.manifest import Checksums, Manifest, TensorSpec
from aent.weights.memory import ExportError
from aent.weights.transport import GlooTransport, NcclTransport, Transport, in_daemon_thread
from aent.weights.waiting import BROKE, finished, first_failure

Bucket = list[tuple[str, TensorSpec, Tensor]]  # name, description and content of each tensor


async def join_group(
    clients: Sequence[EngineClient],
    sizes: Sequence[int],
    backend: Literal["gloo", "nccl"],
    address: str,
    timeout_s: float,
) -> Transport:
    """Form a group of this process and every worker of every engine.

    Args:
        sizes: how many workers each engine has.
        address: of this process, as the engines reach it.

    Raises EngineError if an engine does not join within ``timeout_s``.
    """
    world = 1 + sum(sizes)
    join: Callable[[], Transport]
    if backend == "gloo":
        store, where = GlooTransport.rendezvous(address, timeout_s)
        join = partial(GlooTransport.join, store, address, world, timeout_s)
    else:
        unique_id, where = NcclTransport.rendezvous()
        join = partial(NcclTransport.join, unique_id, world, torch.cuda.current_device())
    offsets = [1 + sum(sizes[:i]) for i in range(len(sizes))]
    calls = [
        asyncio.ensure_future(
            client.call(
                "POST",
                "/init_weight_transfer_engine",
                {"init_info": {**where, "rank_offset": offset, "world_size": world}},
                timeout_s=timeout_s,
            )
        )
        for client, offset in zip(clients, offsets)
    ]
    joining: asyncio.Future[Transport] = in_daemon_thread(join)
    no_group = "no group with the engines' workers"
    try:
        async with asyncio.timeout(timeout_s + waiting.LAST_WORDS_S):
            transport = await first_failure(joining, calls, no_group)
            await asyncio.gather(*calls)
        return transport
    except TimeoutError:
        raise EngineError(f"{no_group} within {timeout_s:.0f} s") from None
    finally:
        joining.cancel()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def send_all(
    clients: Sequence[EngineClient],
    transport: Transport,
    named_tensors: Iterator[tuple[str, Tensor]],
    expected: Manifest | None,
    bucket_bytes: int,
    timeout_s: float,
    timeline: Timeline,
) -> Manifest:
    """Send bucket after bucket, an event of ``timeline`` each; return what was offered, by name.

    A tensor that the model does not need, or that has another shape or dtype, is not sent:
    ``WeightSender.verify`` reports it.

    Raises EngineError as ``send``, ExportError for a tensor that comes twice.
    """
    offered = Checksums()
    under_way: asyncio.Task[None] | None = None

    async def drawn(bucket: Bucket) -> None:
        mib = sum(tensor.nbytes for _, _, tensor in bucket) / 2**20
        with timeline.span("bucket", TRANSFER, tensors=len(bucket), mib=round(mib, 3)):
            await send(clients, transport, bucket, timeout_s)

    try:
        # a thread collects the next bucket while the engines load this one
        buckets = _buckets(named_tensors, expected, offered, bucket_bytes)
        while (bucket := await in_daemon_thread(lambda: next(buckets, None))) is not None:
            if under_way is not None:
                await under_way
            under_way = asyncio.create_task(drawn(bucket))
        if under_way is not None:
            await under_way
    finally:
        if under_way is not None:
            under_way.cancel()
            await asyncio.gather(under_way, return_exceptions=True)
    return offered.manifest()


def _buckets(
    named_tensors: Iterator[tuple[str, Tensor]],
    expected: Manifest | None,
    offered: Checksums,
    bucket_bytes: int,
) -> Iterator[Bucket]:
    """What ``send_all`` sends; fills ``offered``."""
    bucket: Bucket = []
    size = 0
    for name, tensor in named_tensors:
        if name in offered.specs:
            raise ExportError(f"{name} was offered twice")
        spec = offered.add(name, tensor)
        wanted = spec if expected is None else expected.get(name)
        if wanted is None or (wanted.shape, wanted.dtype) != (spec.shape, spec.dtype):
            continue
        bucket.append((name, spec, tensor))
        size += tensor.nbytes
        if size >= bucket_bytes:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


async def send(
    clients: Sequence[EngineClient], transport: Transport, bucket: Bucket, timeout_s: float
) -> None:
    """Announce the bucket to every engine and broadcast its tensors.

    Raises EngineError within ``timeout_s``.
    """
    info = {
        "names": [name for name, _, _ in bucket],
        "dtype_names": [spec.dtype for _, spec, _ in bucket],
        "shapes": [list(spec.shape) for _, spec, _ in bucket],
    }
    calls = [
        asyncio.ensure_future(
            c.call("POST", "/update_weights", {"update_info": info}, timeout_s=timeout_s)
        )
        for c in clients
    ]
    # in a thread: NCCL connects in the first broadcasts, which blocks until every engine has
    # got its call and takes part
    started = in_daemon_thread(lambda: [transport.broadcast(tensor) for _, _, tensor in bucket])
    try:
        # the calls have deadlines of their own, whose errors name the engine
        async with asyncio.timeout(timeout_s + waiting.LAST_WORDS_S):
            for work in await first_failure(started, calls, BROKE):
                await finished(work, calls)
            await asyncio.gather(*calls)
    except TimeoutError:
        urls = ", ".join(client.url for client in clients)
        raise EngineError(
            f"a broadcast of weights to {urls} has not ended within {timeout_s:.0f} s"
        ) from None
    finally:
        started.cancel()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
