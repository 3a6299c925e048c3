"""Memory for new weights, shared by the trainer's ranks and the engines of one machine.

The first rank of each pipeline stage has such a memory, with a place for every tensor of its stage,
planned once. For an update, all stages write their tensors at the same time, one after another, and
record their progress; the engines' workers load each tensor as soon as it is complete.

The memory is a file without a name (memfd_create(2)). A worker opens it as ``/proc/PID/fd/N``,
which the kernel allows to processes of the same user. It is freed with the last process that has it
open, so a killed process leaves nothing behind, and the size of /dev/shm is no limit. A random
number at its start shows that the right file was opened.

Imports only torch: both sides import this.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aent.weights.manifest import Checksums, Manifest, TensorSpec, differences

POLL_S = 0.0005  # between two checks of the writers' progress
ALIGNMENT = 64  # of tensors, bytes
# The head, in words of 8 bytes: the random number, then which update is (being) written, how many
# of its tensors are complete, whether the export is not as planned, the last complete update ...
SECRET_BYTES = 32
UPDATE, WRITTEN, FAULTY, WHOLE = range(SECRET_BYTES // 8, SECRET_BYTES // 8 + 4)
# ... how the export differs from the plan; then the tensors' checksums, then the tensors
TEXT, TEXT_END = 256, 4096


class ExportError(RuntimeError):
    """A writer did not write, or wrote something other than planned."""


@dataclass(frozen=True)
class Address:
    """Where a memory is, and its plan: names, dtypes and shapes in the export's order."""

    pid: int
    descriptor: int
    secret: str  # hex
    names: list[str]
    dtypes: list[str]  # torch's names: "float32"
    shapes: list[list[int]]


@dataclass(frozen=True)
class Layout:
    """Positions in a memory, bytes from its start."""

    planned: list[tuple[str, TensorSpec]]
    offsets: list[int]
    size: int

    @staticmethod
    def of(planned: list[tuple[str, TensorSpec]]) -> Layout:
        end, offsets = TEXT_END + 8 * len(planned), []
        for _, spec in planned:
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            offsets.append(begin)
            end = begin + math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize
        return Layout(planned, offsets, end)


@dataclass
class _Mapped:
    """A memory mapped into this process."""

    memory: mmap.mmap
    layout: Layout
    words: Any = field(init=False, repr=False)  # the head and the checksums, as signed integers

    def __post_init__(self) -> None:
        end = TEXT_END + 8 * len(self.layout.planned)
        self.words = memoryview(self.memory)[:end].cast("q")

    def tensor(self, place: int) -> Tensor:
        """The tensor at a place of the plan; it shares the memory."""
        _, spec = self.layout.planned[place]
        dtype = getattr(torch, spec.dtype)
        count = math.prod(spec.shape)
        if count == 0:
            return torch.empty(spec.shape, dtype=dtype)
        offset = self.layout.offsets[place]
        flat = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=offset)
        return flat.view(spec.shape)


@dataclass
class WeightMemory:
    """The memory of a writer."""

    address: Address
    mapped: _Mapped
    update: int = 0  # the newest one; all writers count alike

    @staticmethod
    def make(planned: Sequence[tuple[str, TensorSpec]]) -> WeightMemory:
        """Reserve memory for these tensors. Raises OSError if there is not enough."""
        layout = Layout.of(list(planned))
        descriptor = os.memfd_create("aent-weights")
        try:
            os.posix_fallocate(descriptor, 0, layout.size)
            memory = mmap.mmap(descriptor, layout.size)
        except OSError:
            os.close(descriptor)
            raise
        secret = secrets.token_bytes(SECRET_BYTES)
        memory[:SECRET_BYTES] = secret
        names, specs = [n for n, _ in planned], [s for _, s in planned]
        address = Address(
            os.getpid(),
            descriptor,
            secret.hex(),
            names,
            [spec.dtype for spec in specs],
            [list(spec.shape) for spec in specs],
        )
        return WeightMemory(address, _Mapped(memory, layout))

    def close(self) -> None:
        """Close it: no process can open it any more, and it is freed with its last reader."""
        os.close(self.address.descriptor)
        self.mapped.words.release()
        self.mapped.memory.close()

    def begin(self) -> None:
        """Begin an update: no tensor is written yet. All readers have finished the one before."""
        words = self.mapped.words
        self.update += 1
        words[WRITTEN] = words[FAULTY] = 0
        words[UPDATE] = self.update

    def write(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write the tensors of the update that was begun, in the order of the plan. The iterator is
        always consumed to the end, since other ranks iterate in lockstep.

        A tensor that is not as planned is not written, and readers are told. Checksums are of the
        tensors given, not of what was written.
        """
        words, planned = self.mapped.words, self.mapped.layout.planned
        offered, place = Checksums(), 0
        for name, tensor in named_tensors:
            spec = offered.add(name, tensor)
            as_planned = not words[FAULTY] and place < len(planned)
            if as_planned and planned[place] == (name, spec):
                self.put(place, tensor)
                place += 1
                words[WRITTEN] = place
            else:
                words[FAULTY] = 1
        found = offered.manifest()
        if words[FAULTY] or place < len(planned):
            text = "; ".join(differences(dict(planned), found)) or "another order of the tensors"
            room = TEXT_END - TEXT - 1
            self.mapped.memory[TEXT:TEXT_END] = text.encode()[:room].ljust(room + 1, b"\0")
            words[FAULTY] = 1
        else:
            for i, (name, _) in enumerate(planned):
                checksum = found[name].checksum
                assert checksum is not None
                unsigned = int(checksum, 16)
                words[TEXT_END // 8 + i] = unsigned - (unsigned >> 63 << 64)
        words[WHOLE] = self.update

    def put(self, place: int, tensor: Tensor) -> None:
        """Copy a tensor to its place."""
        self.mapped.tensor(place).copy_(tensor)


@dataclass
class OpenedMemory:
    """Another process's memory, opened for reading."""

    pid: int
    mapped: _Mapped

    @staticmethod
    def open(address: Address) -> OpenedMemory:
        """Raises OSError if it cannot be opened, ValueError if it is another file: then the writer
        is on another machine, or in a container with its own process numbers."""
        planned = [
            (name, TensorSpec(tuple(shape), dtype))
            for name, dtype, shape in zip(address.names, address.dtypes, address.shapes)
        ]
        layout = Layout.of(planned)
        path = f"/proc/{address.pid}/fd/{address.descriptor}"
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != layout.size:
                raise ValueError(f"{path} is something else here than in the trainer")
            # a loader's writes stay in its own process
            memory = mmap.mmap(descriptor, layout.size, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        if bytes(memory[:SECRET_BYTES]).hex() != address.secret:
            raise ValueError(f"{path} is something else here than in the trainer")
        return OpenedMemory(address.pid, _Mapped(memory, layout))

    def written(self, update: int) -> int:
        """How many tensors of this update are complete."""
        words = self.mapped.words
        return words[WRITTEN] if words[UPDATE] == update else 0

    def is_faulty(self, update: int) -> bool:
        """Whether the export is known to differ from the plan."""
        words = self.mapped.words
        return words[UPDATE] == update and words[FAULTY] != 0

    def is_whole(self, update: int) -> bool:
        """Whether the writer has finished this update."""
        return self.mapped.words[WHOLE] == update

    def offered(self) -> Manifest:
        """The tensors that the writer got for a finished update. Raises ExportError if they are not
        as planned."""
        if self.mapped.words[FAULTY]:
            text = bytes(self.mapped.memory[TEXT:TEXT_END]).partition(b"\0")[0]
            raise ExportError(text.decode(errors="replace"))
        checksums = self.mapped.words[TEXT_END // 8 :]
        return {
            name: TensorSpec(spec.shape, spec.dtype, f"{checksum % 2**64:016x}")
            for (name, spec), checksum in zip(self.mapped.layout.planned, checksums)
        }


def arriving(
    memories: Sequence[OpenedMemory], update: int, timeout_s: float
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every tensor of an update, as soon as it is written; ends early if an
    export is not as planned. Tensors keep their values until the next update.

    Raises ExportError if nothing is written for ``timeout_s`` seconds, or if the trainer has
    abandoned the update.
    """
    places = [0] * len(memories)
    last = time.monotonic()
    while any(place < len(m.mapped.layout.planned) for m, place in zip(memories, places)):
        progress = False
        for i, memory in enumerate(memories):
            for place in range(places[i], memory.written(update)):
                yield memory.mapped.layout.planned[place][0], memory.mapped.tensor(place)
                places[i], progress = place + 1, True
        if any(memory.is_faulty(update) for memory in memories):
            return
        if any(memory.mapped.words[UPDATE] > update for memory in memories):
            raise ExportError("the trainer has begun another weight update")
        now = time.monotonic()
        if progress:
            last = now
        elif now > last + timeout_s:
            behind = next(
                (m, p) for m, p in zip(memories, places) if p < len(m.mapped.layout.planned)
            )
            raise ExportError(
                f"the trainer's process {behind[0].pid} wrote {behind[1]} of "
                f"{len(behind[0].mapped.layout.planned)} tensors of a weight update, and no more "
                f"for {timeout_s:.0f} s"
            )
        else:
            time.sleep(POLL_S)


def offered_by(memories: Iterable[OpenedMemory]) -> Manifest:
    """The tensors that all writers got. Raises ExportError naming those that are not as planned."""
    faults, found = [], []
    for memory in memories:
        try:
            found.append(memory.offered())
        except ExportError as error:
            faults.append(str(error))
    if faults:
        raise ExportError("; ".join(faults))
    return dict(itertools.chain.from_iterable(each.items() for each in found))
