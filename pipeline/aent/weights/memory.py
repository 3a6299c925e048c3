"""New weights in memory that the trainer's ranks and the engines of one machine have in common.

Each pipeline stage's first rank has such a memory, with a place for every tensor of its stage: a
plan made once. For an update it writes them there one after another, all stages at once, and says
how far it is; the engines' workers load each tensor as soon as it is there.

The memory is a file without a name (memfd_create(2)): a worker opens it as ``/proc/PID/fd/N``,
which the kernel lets processes of the same user do. It ends with the last process that has it, so
nothing is left behind by one that is killed, and the size of /dev/shm does not bound it. A random
number at its beginning shows that what was opened is what was meant.

torch alone: both sides import this.
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

POLL_S = 0.0005  # between two looks at how far the writers are
ALIGNMENT = 64  # of tensors, bytes
# The head, in words of 8 bytes: the random number, then which update is (being) written, how many
# of its tensors are there, whether the export is not as planned, the update that is whole ...
SECRET_BYTES = 32
UPDATE, WRITTEN, FAULTY, WHOLE = range(SECRET_BYTES // 8, SECRET_BYTES // 8 + 4)
# ... in what way the export is not as planned; then the tensors' checksums, then the tensors
TEXT, TEXT_END = 256, 4096


class ExportError(RuntimeError):
    """A writer did not write, or not what was planned."""


@dataclass(frozen=True)
class Address:
    """Where a memory is, and its plan: names, dtypes and shapes in the order of the export."""

    pid: int
    descriptor: int
    secret: str  # hex
    names: list[str]
    dtypes: list[str]  # as torch names them: "float32"
    shapes: list[list[int]]


@dataclass(frozen=True)
class Layout:
    """Where everything is in a memory, bytes from its beginning."""

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
    """A memory in this process."""

    memory: mmap.mmap
    layout: Layout
    words: Any = field(init=False, repr=False)  # the head and the checksums, as signed integers

    def __post_init__(self) -> None:
        end = TEXT_END + 8 * len(self.layout.planned)
        self.words = memoryview(self.memory)[:end].cast("q")

    def tensor(self, place: int) -> Tensor:
        """The one at a place of the plan, as it stands in the memory."""
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
    """A writer's own."""

    address: Address
    mapped: _Mapped
    update: int = 0  # the newest one; every writer counts the same

    @staticmethod
    def make(planned: Sequence[tuple[str, TensorSpec]]) -> WeightMemory:
        """Have the machine set aside room for these. Raises OSError where there is none."""
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
        """Give it back: nobody can open it any more, and it goes with the last reader's."""
        os.close(self.address.descriptor)
        self.mapped.words.release()
        self.mapped.memory.close()

    def begin(self) -> None:
        """Begin an update: nothing of it is there. Whoever read the one before has done so."""
        words = self.mapped.words
        self.update += 1
        words[WRITTEN] = words[FAULTY] = 0
        words[UPDATE] = self.update

    def write(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write the tensors of the update that was begun, which come in the order of the plan;
        consumed to the end in any case, as other ranks iterate in lockstep.

        What is not as planned is not written; it is told to those who read. Checksums are of the
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
    """Another process's, to be read."""

    pid: int
    mapped: _Mapped

    @staticmethod
    def open(address: Address) -> OpenedMemory:
        """Raises OSError where it cannot be opened, ValueError where that is another one: the
        writer is on another machine, or in a container that numbers its processes by itself."""
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
            # what a loader writes into it stays in its own process
            memory = mmap.mmap(descriptor, layout.size, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        if bytes(memory[:SECRET_BYTES]).hex() != address.secret:
            raise ValueError(f"{path} is something else here than in the trainer")
        return OpenedMemory(address.pid, _Mapped(memory, layout))

    def written(self, update: int) -> int:
        """How many tensors of this update are there."""
        words = self.mapped.words
        return words[WRITTEN] if words[UPDATE] == update else 0

    def is_faulty(self, update: int) -> bool:
        """Whether the export is known not to be as planned."""
        words = self.mapped.words
        return words[UPDATE] == update and words[FAULTY] != 0

    def is_whole(self, update: int) -> bool:
        """Whether the writer has done all that it does for this update."""
        return self.mapped.words[WHOLE] == update

    def offered(self) -> Manifest:
        """What the writer was given for an update that is whole. Raises ExportError where that is
        not as planned."""
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
    """(name, tensor) of everything that is written for an update, as soon as it is there; ends
    early where an export is not as planned. Their values stay until the next update.

    Raises ExportError where nothing more is written for ``timeout_s`` seconds, or the trainer has
    given the update up.
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
    """What all writers were given. Raises ExportError naming what was not as planned."""
    faults, found = [], []
    for memory in memories:
        try:
            found.append(memory.offered())
        except ExportError as error:
            faults.append(str(error))
    if faults:
        raise ExportError("; ".join(faults))
    return dict(itertools.chain.from_iterable(each.items() for each in found))
