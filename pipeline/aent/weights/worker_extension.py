"""The code inside every vLLM worker that receives weights and reports exactly what arrived.

vLLM imports this module by the name of ``WorkerExtension`` (``--worker-extension-cls``). The import
registers the backends "aent_gloo" and "aent_nccl" with vLLM's weight-transfer API (0.32.0). Only
this module and ``inference.array_route`` import vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from aent.weights import cuda_ipc, nccl
from aent.weights.manifest import Checksums
from aent.weights.memory import OpenedMemory, arriving
from aent.weights.memory_layout import Address
from aent.weights.transport import gloo_broadcast, gloo_group


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """The trainer's address, and this engine's place in the group."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The tensors of one bucket, in the order of their broadcasts; or the number of the update to
    read from the trainer's memories, which have the names."""

    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    update: int = 0  # above 0: from the memories
    timeout_s: float = 0.0  # longest time without a new tensor


def broadcasts(
    engine: Any, info: GlooUpdateInfo | NCCLWeightTransferUpdateInfo
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a bucket, one after another."""
    for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes):
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=engine.device)
        engine.broadcast(tensor)
        yield name, tensor


def load(engine: Any, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Load them into ``engine.model``; record what arrived."""

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named_tensors:
            engine.received.add(name, tensor)
            yield name, tensor

    engine.model.load_weights(noted())


def on_gpu(addresses: Sequence[Address], gpu: str) -> Address:
    """The memory on this GPU. Raises ValueError if there is none."""
    for address in addresses:
        if address.gpu == gpu:
            return address
    raise ValueError(f"no rank of the trainer has its weights on the engine's GPU, {gpu}")


def tied_heads(model: torch.nn.Module) -> list[Any]:
    """Output layers whose weight is that of an embedding.

    The tensors are compared because vLLM sets ``tie_word_embeddings`` to False if the file also
    stores a head, and ties the two again if they are equal.
    """
    layers = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    embeddings = {id(layer.weight) for layer in layers if layer not in heads}
    return [head for head in heads if id(head.weight) in embeddings]


class GlooEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Weights over TCP, for a server on a CPU, or from memories of a trainer on this machine, also
    for one that shares the trainer's GPUs (which was not run: it needs a GPU)."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: dist.ProcessGroupGloo | None = None
    memories: tuple[OpenedMemory, ...] = ()
    received: Checksums
    is_open = False  # an update has begun and was not finished

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        parallel = self.parallel_config
        worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = dist.TCPStore(
            init_info.master_address,
            init_info.master_port,
            is_master=False,
            timeout=timedelta(seconds=init_info.timeout_s),
        )
        self.group = gloo_group(
            store,
            init_info.master_address,
            init_info.rank_offset + worker,
            init_info.world_size,
            init_info.timeout_s,
        )

    def start_weight_update(self) -> None:
        self.received, self.is_open = Checksums(), True
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if not update_info.update:
            load(self, broadcasts(self, update_info))
        elif not self.memories:
            raise RuntimeError("no memory is open: aent_open_memories comes first")
        else:
            new = arriving(self.memories, update_info.update, update_info.timeout_s)
            load(self, ((name, tensor.to(self.device)) for name, tensor in new))

    def broadcast(self, tensor: Tensor) -> None:
        if self.group is None:
            raise RuntimeError("no trainer is connected: /init_weight_transfer_engine comes first")
        gloo_broadcast(self.group, tensor).wait()

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # vLLM on a CPU computes with a packed copy of each matrix. The reload repacks a layer when
        # its tensors arrive; a tied head gets none and would keep its old copy.
        for head in tied_heads(self.model):
            head.quant_method.process_weights_after_loading(head)
        for memory in self.memories:
            memory.leave()
        self.is_open = False

    def shutdown(self) -> None:
        self.group, self.memories = None, ()


class NcclEngine(NCCLWeightTransferEngine):
    """vLLM's NCCL engine, which records what arrives. Not run here: it needs two GPUs."""

    received: Checksums
    is_open = False

    def start_weight_update(self) -> None:
        self.received, self.is_open = Checksums(), True
        super().start_weight_update()

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        self.is_open = False

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        load(self, broadcasts(self, update_info))

    def broadcast(self, tensor: Tensor) -> None:
        if self.model_update_group is None:
            raise RuntimeError("no trainer is connected: /init_weight_transfer_engine comes first")
        stream = torch.cuda.current_stream()
        self.model_update_group.broadcast(tensor, src=0, stream=stream)


class WorkerExtension:
    """Methods that vLLM adds to its worker class, called through /collective_rpc."""

    weight_transfer_engine: Any
    _weight_update_active: bool
    finish_weight_update: Callable[[], None]

    def aent_reset_transfer(self) -> None:
        """Close an interrupted update without a new version, and leave its group.

        Otherwise, layers that have only a part of their tensors would add the next update's to
        them. Their present values are useless: the engine must stay paused.
        """
        if self.weight_transfer_engine.is_open:
            self._weight_update_active = True  # else it may have failed in this worker
            self.finish_weight_update()
        self.weight_transfer_engine.shutdown()

    def aent_received(self) -> dict[str, Any]:
        """{name: [shape, dtype, checksum]} of every tensor since the update began."""
        received = self.weight_transfer_engine.received.manifest()
        return {n: [list(s.shape), s.dtype, s.checksum] for n, s in received.items()}

    def aent_open_memories(self, addresses: str) -> list[str]:
        """Open the trainer's memories (a JSON list of ``Address``), to read updates from them;
        returns the reason why they cannot be opened, in one sentence, or an empty list."""
        engine = self.weight_transfer_engine
        try:
            if not isinstance(engine, GlooEngine):
                raise ValueError("the engine's backend is not aent_gloo")
            found = [Address(**each) for each in json.loads(addresses)]
            if any(address.gpu for address in found):
                found = [on_gpu(found, cuda_ipc.uuid(engine.device))]
            opened = [OpenedMemory.open(address, engine.device.index) for address in found]
        except (OSError, ValueError) as error:
            return [str(error)]
        engine.memories = tuple(opened)
        return []

    def aent_nccl_version(self) -> list[int]:
        """Major, minor and patch version of the NCCL that this worker's groups use."""
        return list(nccl.version_of(NCCLLibrary().ncclGetRawVersion()))


for _name, _engine in (("aent_gloo", GlooEngine), ("aent_nccl", NcclEngine)):
    if _name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(_name, _engine)
