"""Weights in shared memory: readers get what was written, and errors are reported."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

import pytest
import torch
from torch import Tensor

from aent.weights.manifest import Manifest, TensorSpec, differences
from aent.weights.memory import ExportError, OpenedMemory, WeightMemory, arriving, offered_by
from waiting import wait_until

torch.manual_seed(0)
TENSORS = {
    "a": torch.arange(24.0).view(4, 6),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "c": torch.randn(7, 9),
}


def planned(tensors: dict[str, Tensor]) -> list[tuple[str, TensorSpec]]:
    specs = ((name, TensorSpec.of(tensor)) for name, tensor in tensors.items())
    return [(name, dataclasses.replace(spec, checksum=None)) for name, spec in specs]


def specs(tensors: dict[str, Tensor]) -> Manifest:
    return {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}


def test_two_stages_write_what_is_read_as_it_comes_update_after_update() -> None:
    parts = [dict(list(TENSORS.items())[:2]), dict(list(TENSORS.items())[2:])]
    memories = [WeightMemory.make(planned(part)) for part in parts]
    opened = [OpenedMemory.open(memory.address) for memory in memories]
    for update in (1, 2, 3):
        new = {name: tensor + update for name, tensor in TENSORS.items()}
        for memory in memories:
            memory.begin()
        arrived = arriving(opened, update, timeout_s=60.0)
        memories[0].write([("a", new["a"]), ("b", new["b"])])
        read = {}
        for _ in range(2):  # the other stage has written nothing yet
            name, tensor = next(arrived)
            read[name] = tensor.clone()
        assert list(read) == ["a", "b"]
        memories[1].write([("empty", new["empty"]), ("c", new["c"])])
        read |= {name: tensor.clone() for name, tensor in arrived}
        assert all(torch.equal(read[name], new[name]) for name in TENSORS)
        assert all(each.is_whole(update) for each in opened)
        assert offered_by(opened) == specs(new)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "b"}, "b is missing"),
        (lambda t: t | {"more": torch.zeros(2)}, "more is not expected"),
        (lambda t: t | {"a": t["a"].T}, "a has shape [6, 4], not [4, 6]"),
        (lambda t: t | {"c": t["c"].double()}, "c has dtype float64, not float32"),
        (lambda t: dict(reversed(t.items())), "another order"),
    ],
)
def test_an_export_that_is_not_as_planned_is_told_and_the_next_one_is_good(change, words) -> None:
    memory = WeightMemory.make(planned(TENSORS))
    opened = OpenedMemory.open(memory.address)
    memory.begin()
    memory.write(change(TENSORS).items())
    list(arriving([opened], 1, timeout_s=60.0))  # does not wait for tensors that will not come
    with pytest.raises(ExportError) as error:
        offered_by([opened])
    assert words in str(error.value)
    memory.begin()
    memory.write(TENSORS.items())
    assert len(list(arriving([opened], 2, timeout_s=60.0))) == len(TENSORS)
    assert offered_by([opened]) == specs(TENSORS)


class Transposing(WeightMemory):
    """Puts something else in its place."""

    def put(self, place: int, tensor: Tensor) -> None:
        super().put(place, tensor.T.reshape(tensor.shape) if place == 0 else tensor)


def test_checksums_are_of_what_was_given_not_of_what_was_written() -> None:
    made = WeightMemory.make(planned(TENSORS))
    memory = Transposing(made.address, made.mapped)
    opened = OpenedMemory.open(memory.address)
    memory.begin()
    memory.write(TENSORS.items())
    received = {name: TensorSpec.of(t) for name, t in arriving([opened], 1, timeout_s=60.0)}
    (fault,) = differences(offered_by([opened]), received)
    assert fault.startswith("a has other content")


def test_a_reader_that_waits_in_vain_says_for_what() -> None:
    memory = WeightMemory.make(planned(TENSORS))
    opened = OpenedMemory.open(memory.address)
    memory.begin()
    with pytest.raises(ExportError, match=f"{os.getpid()} wrote 0 of 4 tensors"):
        list(arriving([opened], 1, timeout_s=0.01))
    arrived = arriving([opened], 1, timeout_s=60.0)
    memory.begin()
    with pytest.raises(ExportError, match="another weight update"):
        list(arrived)


def test_what_a_reader_writes_stays_its_own() -> None:
    memory = WeightMemory.make(planned(TENSORS))
    readers = [OpenedMemory.open(memory.address) for _ in range(2)]
    memory.begin()
    memory.write(TENSORS.items())
    readers[0].mapped.tensor(0).zero_()
    assert torch.equal(readers[1].mapped.tensor(0), TENSORS["a"])


def test_another_memory_than_the_one_that_was_meant_is_not_opened() -> None:
    memory, other = (WeightMemory.make(planned(TENSORS)) for _ in range(2))
    wrong = dataclasses.replace(memory.address, descriptor=other.address.descriptor)
    with pytest.raises(ValueError, match="something else"):
        OpenedMemory.open(wrong)
    with pytest.raises(ValueError, match="something else"):
        OpenedMemory.open(dataclasses.replace(memory.address, shapes=[[1]] * 4))
    read_end, write_end = os.pipe()
    with pytest.raises(ValueError, match="something else"):
        OpenedMemory.open(dataclasses.replace(memory.address, descriptor=read_end))
    os.close(read_end)
    os.close(write_end)
    memory.close()
    with pytest.raises(OSError, match="/proc/"):
        OpenedMemory.open(memory.address)


def write_on_request(pipe: Connection) -> None:
    torch.set_num_threads(1)
    memory = WeightMemory.make(planned(TENSORS))
    pipe.send(memory.address)
    memory.begin()
    pipe.recv()
    memory.write(TENSORS.items())
    pipe.recv()


def test_a_killed_writer_leaves_its_memory_to_those_who_read_and_nothing_else() -> None:
    ours, theirs = multiprocessing.Pipe()
    writer = multiprocessing.get_context("spawn").Process(target=write_on_request, args=(theirs,))
    before = set(os.listdir("/dev/shm"))
    writer.start()
    address = ours.recv()
    opened = OpenedMemory.open(address)
    threading.Timer(0.1, lambda: ours.send("write")).start()
    read = {name: TensorSpec.of(t) for name, t in arriving([opened], 1, timeout_s=60.0)}
    wait_until(lambda: opened.is_whole(1), "the weights are whole")
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(60)
    assert read == offered_by([opened]) == specs(TENSORS)
    assert {name for name in set(os.listdir("/dev/shm")) - before if "aent" in name} == set()
    with pytest.raises(OSError, match="/proc/"):
        OpenedMemory.open(address)
