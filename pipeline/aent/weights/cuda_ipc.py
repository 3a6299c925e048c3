"""A buffer in a GPU's memory that another process opens on the same GPU (CUDA IPC).

Not run: it needs a GPU. Written against ``torch.multiprocessing.reductions`` of torch 2.13, whose
two functions take and return plain numbers and bytes; nothing is pickled. vLLM's own engine for it
(0.32.0, vllm/distributed/weight_transfer/ipc_engine.py) uses the same two. A test holds their
arguments.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

EXPANDABLE = "expandable_segments:True"  # of torch's allocator; a rank sets it (``runtime.rank``)


@dataclass(frozen=True)
class Handle:
    """What another process needs to open a buffer once. Bytes are written as hex."""

    memory: str  # CUDA's name of the allocation that the buffer is a part of
    size: int  # of the buffer, bytes
    offset: int  # in the allocation, bytes
    counter: str  # where torch counts who still uses the buffer
    counter_offset: int
    event: str  # of the work that fills it, as far as it was queued
    event_needed: bool


def uuid(device: torch.device | int | None = None) -> str:
    """The GPU's name, which is the same in every process; None: the present one."""
    return str(torch.cuda.get_device_properties(device).uuid)


def reserve(size: int) -> Tensor:
    """[size] uint8 on this process's GPU, to be shared."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    settings = next((os.environ[name] for name in names if name in os.environ), "")
    if EXPANDABLE not in settings:
        return torch.empty(size, dtype=torch.uint8, device="cuda")
    # only a process that may trace this one could open memory of expandable segments
    torch._C._accelerator_setAllocatorSettings("expandable_segments:False")
    try:
        return torch.empty(size, dtype=torch.uint8, device="cuda")
    finally:
        torch._C._accelerator_setAllocatorSettings(settings)


def share(buffer: Tensor) -> Handle:
    """Let one other process open the buffer, a whole storage, which has to live until that process
    has let go of it."""
    _, arguments = reduce_tensor(buffer)
    named = dict(zip(inspect.signature(rebuild_cuda_tensor).parameters, arguments, strict=True))
    return Handle(
        memory=named["storage_handle"].hex(),
        size=named["storage_size_bytes"],
        offset=named["storage_offset_bytes"],
        counter=named["ref_counter_handle"].hex(),
        counter_offset=named["ref_counter_offset"],
        event=named["event_handle"].hex(),
        event_needed=named["event_sync_required"],
    )


def open_shared(handle: Handle, device: int) -> Tensor:
    """[size] uint8: the same memory in this process. It lets go of it with the last tensor of it.

    device: the number that its GPU has here.
    """
    return rebuild_cuda_tensor(
        tensor_cls=Tensor,
        tensor_size=(handle.size,),
        tensor_stride=(1,),
        tensor_offset=0,
        storage_cls=torch.storage.TypedStorage,
        dtype=torch.uint8,
        storage_device=device,
        storage_handle=bytes.fromhex(handle.memory),
        storage_size_bytes=handle.size,
        storage_offset_bytes=handle.offset,
        requires_grad=False,
        ref_counter_handle=bytes.fromhex(handle.counter),
        ref_counter_offset=handle.counter_offset,
        event_handle=bytes.fromhex(handle.event),
        event_sync_required=handle.event_needed,
    )


def finish(buffer: Tensor) -> None:
    """Return when what this thread has queued on the buffer's GPU has ended."""
    if buffer.is_cuda:
        torch.cuda.current_stream(buffer.device).synchronize()


def collect() -> None:
    """Free buffers that nobody uses any more."""
    if torch.cuda.is_available():
        torch.cuda.ipc_collect()
