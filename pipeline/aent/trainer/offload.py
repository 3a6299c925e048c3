"""The optimizer's tensors in host memory, and no gradients, while engines have the trainer's GPU.

Megatron's own ``offload_to_cpu`` of an optimizer gives the tensors new storages. With float32
weights the main parameters are views of the model's, and would no longer be. Here the storages stay
the same and only lose their memory for a while, so that every view of them is valid afterwards.
Megatron frees the gradients itself (``offload_grad_buffers``), and each update begins by setting
them to zero.

This has not run on a GPU; on a CPU the same code runs without pinned memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from aent.runtime import distributed
from aent.runtime.megatron_cpu import on_device

# torch rounds each piece of pinned memory up to a power of 2 bytes
CHUNK_BYTES = 2**28


class Offload:
    """The tensors of a rank's optimizer, on its device or in host memory."""

    def __init__(
        self,
        model: DistributedDataParallel,
        optimizer: MegatronOptimizer,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.model, self.optimizer, self.chunk_bytes = model, optimizer, chunk_bytes
        self._host: list[Tensor] = []  # chunks, kept from one time to the next
        self.is_away = False
        self._freed: list[tuple[torch.UntypedStorage, int]] = []  # with their sizes, bytes

    @on_device
    @torch.no_grad()
    def offload(self) -> None:
        """Copy the optimizer's tensors to host memory and free them; free the gradients."""
        if self.is_away:
            raise RuntimeError("the optimizer is in host memory already")
        storages = self._storages()
        for there, here in self._copies(storages):
            here.copy_(there, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.is_away = True
        self._freed = [(storage, storage.nbytes()) for storage in storages]
        for storage in storages:
            storage.resize_(0)
        self.model.offload_grad_buffers()  # gives freed memory back to the driver, too

    @on_device
    @torch.no_grad()
    def onload(self) -> None:
        """Undo ``offload``: the same bits, at whatever addresses; gradients of 0."""
        for storage, size in self._freed:
            storage.resize_(size)
        for there, here in self._copies([storage for storage, _ in self._freed]):
            there.copy_(here, non_blocking=True)
        self.is_away, self._freed = False, []
        self.model.restore_grad_buffers()  # waits for the copies, too

    def _storages(self) -> list[torch.UntypedStorage]:
        """Of all tensors of the optimizer on the device, each once, without the model's own."""
        seen = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        storages = []
        for tensor in self._tensors():
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                storages.append(storage)
        return storages

    def _tensors(self) -> Iterator[Tensor]:
        device = distributed.device().type
        for part in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            if part.optimizer is None:  # of a rank without parameters of this kind
                continue
            for group in part.optimizer.param_groups:
                yield from (p for p in group["params"] if p.device.type == device)
            for state in part.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor) and value.device.type == device:
                        yield value

    def _copies(self, storages: list[torch.UntypedStorage]) -> Iterator[tuple[Tensor, Tensor]]:
        """(bytes on the device, their place in host memory), piece by piece."""
        position = 0
        for storage in storages:
            there = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            while len(there):
                chunk, begin = divmod(position, self.chunk_bytes)
                if chunk == len(self._host):
                    self._host.append(self._new_chunk())
                size = min(len(there), self.chunk_bytes - begin)
                yield there[:size], self._host[chunk][begin : begin + size]
                there, position = there[size:], position + size

    def _new_chunk(self) -> Tensor:
        pinned = torch.cuda.is_available()
        return torch.empty(self.chunk_bytes, dtype=torch.uint8, pin_memory=pinned)
