"""Weights in the memory of GPUs: how they are found, with a stand-in for CUDA, and what torch and
vLLM say of CUDA's part, which needs a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import reductions

from aent.weights import cuda_ipc
from aent.weights.cuda_ipc import Handle
from aent.weights.manifest import Manifest, TensorSpec
from aent.weights.memory import ExportError, OpenedMemory, WeightMemory, arriving, offered_by
from aent.weights.memory_layout import Address

TENSORS = {
    "a": torch.arange(24.0).view(4, 6),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "c": torch.arange(63.0).view(7, 9).sin(),
}
PLANNED = [(n, dataclasses.replace(TensorSpec.of(t), checksum=None)) for n, t in TENSORS.items()]


class Gpus:
    """In place of CUDA: a buffer can be opened once for each time that it was shared, on its own
    GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared: dict[str, Tensor] = {}
        self.finished = 0
        for name in ("reserve", "share", "open_shared", "finish"):
            monkeypatch.setattr(cuda_ipc, name, getattr(self, name))

    def reserve(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def share(self, buffer: Tensor) -> Handle:
        name = f"{len(self.shared):02x}"
        self.shared[name] = buffer
        return Handle(name, buffer.numel(), 0, "", 0, "", True)

    def open_shared(self, handle: Handle, device: int) -> Tensor:
        assert device == 0
        buffer = self.shared.pop(handle.memory)
        assert handle.size == buffer.numel()
        self.shared[handle.memory] = torch.empty(0)  # it was opened
        return buffer

    def finish(self, buffer: Tensor) -> None:
        self.finished += 1


def of(tensors: dict[str, Tensor]) -> Manifest:
    return {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}


def test_a_worker_reads_from_its_own_gpu_update_after_update(monkeypatch) -> None:
    gpus = Gpus(monkeypatch)
    ranks = [WeightMemory.make(PLANNED, gpu=f"GPU-{rank}") for rank in range(2)]
    heads = [OpenedMemory.open(rank.address) for rank in ranks]  # as rank 0 reads all of them
    worker = OpenedMemory.open(ranks[1].address, device=0)
    for update in (1, 2, 3):
        new = {name: tensor + update for name, tensor in TENSORS.items()}
        for rank in ranks:
            rank.begin()
            rank.write(new.items())
        assert gpus.finished > 0  # a tensor counts as written when it is
        arrived = dict(arriving([worker], update, timeout_s=60.0))
        assert all(torch.equal(arrived[name], new[name]) for name in TENSORS)
        assert all(head.is_whole(update) for head in heads)
        assert offered_by(heads) == of(new)
        worker.leave()
        for rank in ranks:
            rank.leave()
            assert rank.mapped.buffer is None
    assert worker.mapped.buffer is None


def test_ranks_with_different_weights_are_named(monkeypatch) -> None:
    """Copies of a policy in data parallelism; each engine gets another one."""
    Gpus(monkeypatch)
    ranks = [WeightMemory.make(PLANNED, gpu=f"GPU-{rank}") for rank in range(2)]
    for rank, other in zip(ranks, (0.0, 1e-6)):
        rank.begin()
        rank.write((TENSORS | {"c": TENSORS["c"] + other}).items())
    with pytest.raises(ExportError, match=r"process \d+: c has other content"):
        offered_by([OpenedMemory.open(rank.address) for rank in ranks])


def test_the_file_has_only_the_head_and_a_fault_leaves_the_handle(monkeypatch) -> None:
    Gpus(monkeypatch)
    rank = WeightMemory.make(PLANNED, gpu="GPU-0")
    worker = OpenedMemory.open(rank.address, device=0)
    assert len(rank.mapped.memory) < rank.mapped.layout.size
    rank.begin()
    rank.write({**TENSORS, **{f"unplanned.{i}": torch.zeros(1) for i in range(500)}}.items())
    assert list(arriving([worker], 1, timeout_s=60.0))  # and no error of reading the handle
    with pytest.raises(ExportError, match="unplanned"):
        offered_by([worker])


def test_torch_takes_what_it_gives_and_all_of_it_is_plain() -> None:
    """The order of ``reduce_tensor``'s values is that of ``rebuild_cuda_tensor``'s parameters, and
    those that we give are all that it has."""
    parameters = list(inspect.signature(reductions.rebuild_cuda_tensor).parameters)
    ours = inspect.getsource(cuda_ipc.open_shared)
    assert all(f"        {name}=" in ours for name in parameters)
    source = inspect.getsource(reductions.reduce_tensor)
    given = source[source.index("rebuild_cuda_tensor,") :]
    said = (
        "type(tensor)",
        "tensor.size()",
        "tensor.stride()",
        "tensor_offset",
        "type(storage)",
        "tensor.dtype",
        "device",
        *parameters[7:10],
        "tensor.requires_grad",
        "ref_counter_handle",
        "ref_counter_offset",
        "event_handle",
        "event_sync_required",
    )
    handle = [name if name != "storage_handle" else "handle" for name in said]
    places = [given.index(f"                {name},") for name in handle]
    assert places == sorted(places)
    assert len(said) == len(parameters)
    assert hasattr(torch._C, "_accelerator_setAllocatorSettings")


def test_vllm_opens_it_by_the_same_function_and_place_of_the_device() -> None:
    spec = importlib.util.find_spec("vllm.distributed.weight_transfer.ipc_engine")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    assert "list_args[6] = device_index" in source
    assert list(inspect.signature(reductions.rebuild_cuda_tensor).parameters)[6] == "storage_device"
    assert "rebuild_cuda_tensor(*list_args)" in source


def read(address: Address, pipe: Connection) -> None:
    """Another process on the same GPU: what it has read of each update."""
    worker = OpenedMemory.open(address, device=torch.cuda.current_device())
    for update in (1, 2):
        pipe.recv()
        seen = {name: TensorSpec.of(t) for name, t in arriving([worker], update, timeout_s=60.0)}
        worker.leave()
        pipe.send(seen)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", ["", cuda_ipc.EXPANDABLE])
def test_another_process_on_the_gpu_reads_it(monkeypatch, settings: str) -> None:
    """Also from an allocator whose segments grow, as a rank's do (`make test-gpu`)."""
    if not torch.cuda.is_available():
        pytest.fail("this test needs a GPU that torch can use")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", settings)
    torch._C._accelerator_setAllocatorSettings(settings or "expandable_segments:False")
    memory = WeightMemory.make(PLANNED, gpu=cuda_ipc.uuid())
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=read, args=(memory.address, theirs), daemon=True)
    other.start()
    for update in (1, 2):
        new = {name: tensor + update for name, tensor in TENSORS.items()}
        memory.begin()
        ours.send(update)
        memory.write((name, tensor.cuda()) for name, tensor in new.items())
        assert ours.poll(300)
        assert ours.recv() == of(new)
        memory.leave()
    other.join(60)
    assert other.exitcode == 0
