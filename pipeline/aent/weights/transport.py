"""How weights are sent, from the trainer's rank 0 to every worker of every engine.

In a group the sender is rank 0, followed by the engines' workers. This module only starts
broadcasts; the caller that waits for them sets the deadline. Imports only torch: both sides use it.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from aent.runtime.network import LOOPBACK, own_address

T = TypeVar("T")


class Broadcast(Protocol):
    """A broadcast under way."""

    def is_completed(self) -> bool:
        """Whether it has ended, successfully or not."""

    def wait(self) -> Any:
        """Return when it has ended; raise RuntimeError if it failed."""


class Transport(Protocol):
    """The sender's end of a group."""

    def broadcast(self, tensor: Tensor) -> Broadcast:
        """Start sending; ``tensor`` must not change until the broadcast has ended. May block until
        every engine takes part, so call it in a thread."""

    def close(self) -> None:
        """Leave the group: processes that wait in it get an error.

        Raises RuntimeError if a broadcast under way cannot be cancelled.
        """


def in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run blocking work that may never return, so that the process can still end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value, error = None, None
        try:
            value = work()
        except Exception as e:
            error = e
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True).start()
    return future


# -- gloo: CPU tensors over TCP


def gloo_group(
    store: dist.Store, address: str, rank: int, world: int, timeout_s: float
) -> dist.ProcessGroupGloo:
    """Join the group (blocks until all have joined). ``address``: where the sender listens.

    Raises RuntimeError after ``timeout_s`` seconds, which also bounds each later broadcast.
    """
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=timeout_s)
    # all on one machine: do not depend on its host name
    host = LOOPBACK if address == LOOPBACK else own_address()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, rank, world, options)


def gloo_broadcast(group: dist.ProcessGroupGloo, tensor: Tensor) -> dist.Work:
    """Start a broadcast from rank 0."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    return group.broadcast([tensor], options)  # type: ignore[attr-defined]


@dataclass(eq=False)
class _GlooBroadcast:
    """Releases torch's handle early, because it keeps the group's connections open."""

    work: dist.Work | None

    def is_completed(self) -> bool:
        return self.work is None or self.work.is_completed()

    def wait(self) -> None:
        try:
            if self.work is not None:
                self.work.wait()
        finally:
            self.work = None


@dataclass
class GlooTransport:
    """To engines on CPUs."""

    group: dist.ProcessGroupGloo | None
    store: dist.TCPStore  # the group's rendezvous: lives as long as the group
    _sent: list[_GlooBroadcast] = field(default_factory=list)  # those that may not have ended

    @staticmethod
    def rendezvous(address: str, timeout_s: float) -> tuple[dist.TCPStore, dict[str, Any]]:
        """Open the store; return it with what workers need to find it."""
        store = dist.TCPStore(
            address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
        init = {"master_address": address, "master_port": store.port, "timeout_s": timeout_s}
        return store, init

    @staticmethod
    def join(store: dist.TCPStore, address: str, world: int, timeout_s: float) -> GlooTransport:
        """Join as rank 0; blocks until all have joined."""
        return GlooTransport(gloo_group(store, address, 0, world, timeout_s), store)

    def broadcast(self, tensor: Tensor) -> Broadcast:
        assert self.group is not None
        sent = _GlooBroadcast(gloo_broadcast(self.group, tensor.cpu().contiguous()))
        self._sent = [*(s for s in self._sent if s.work is not None), sent]
        return sent

    def close(self) -> None:
        for sent in self._sent:
            sent.work = None
        self.group = None


# -- nccl: CUDA tensors


@dataclass
class _CudaBroadcast:
    event: torch.cuda.Event
    tensor: Tensor  # must not be freed before the event

    def is_completed(self) -> bool:
        return self.event.query()

    def wait(self) -> None:
        self.event.synchronize()


@dataclass
class NcclTransport:
    """To engines on GPUs, by vLLM's protocol for a trainer without vLLM (a pre-shared NCCL id, a
    one-element all-reduce after joining, one unpacked broadcast per tensor; see
    vllm/distributed/weight_transfer/nccl_common.py).

    Written against vLLM 0.32.0 and torch.cuda.nccl, but not run here, since it needs two GPUs. The
    trainer's GPU must not be one of the engines', and both sides need the same version of NCCL.
    """

    communicator: Any
    device: int  # set in each thread that calls this, because threads begin with device 0
    newest: _CudaBroadcast | None = None
    starting: bool = False  # a broadcast is starting; it blocks while NCCL connects

    @staticmethod
    def rendezvous() -> tuple[bytes, dict[str, Any]]:
        """Create the group's id; return it with what workers need to join."""
        unique_id = torch.cuda.nccl.unique_id()
        return unique_id, {"nccl_unique_id_b64": base64.b64encode(unique_id).decode()}

    @staticmethod
    def join(unique_id: bytes, world: int, device: int) -> NcclTransport:
        """Join as rank 0 on this device; blocks until all have joined."""
        with torch.cuda.device(device):
            communicator = torch.cuda.nccl.init_rank(world, unique_id, 0)
            torch.cuda.nccl.all_reduce([torch.zeros(1, device="cuda")], comms=[communicator])
            torch.cuda.synchronize()
        return NcclTransport(communicator, device)

    def broadcast(self, tensor: Tensor) -> Broadcast:
        self.starting = True
        try:
            with torch.cuda.device(self.device):
                tensor = tensor.cuda().contiguous()
                torch.cuda.nccl.broadcast([tensor], root=0, comms=[self.communicator])
                event = torch.cuda.Event()
                event.record()
                self.newest = _CudaBroadcast(event, tensor)
        finally:  # after a failure too, or ``close`` would hide the reason
            self.starting = False
        return self.newest

    def close(self) -> None:
        if self.starting or (self.newest is not None and not self.newest.is_completed()):
            raise RuntimeError("a broadcast of weights by NCCL waits for a lost engine for ever")
        self.communicator = None
