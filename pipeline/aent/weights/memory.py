"""Memory for new weights, shared by the trainer's ranks and the engines of one machine.

The first rank of each pipeline stage has such a memory, with a place for every tensor of its stage,
planned once. For an update, all stages write their tensors at the same time, one after another, and
record their progress; the engines' workers load each tensor as soon as it is complete.

The memory is a file without a name (memfd_create(2)). A worker opens it as ``/proc/PID/fd/N``,
which the kernel allows to processes of the same user. It is freed with the last process that has it
open, so a killed process leaves nothing behind, and the size of /dev/shm is no limit. A random
number at its start shows that the right file was opened.

If trainer and engines share GPUs, the tensors may lie in GPU memory instead (``weights.cuda_ipc``),
of each rank that has them, reserved for each update. The file then has only its head, and in it the
handle of that memory; an engine's worker reads from the rank on its own GPU. This was not run.

Imports only torch: both sides import this.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from aent.weights import cuda_ipc
from aent.weights.manifest import Checksums, Manifest, TensorSpec, differences
from aent.weights.memory_layout import (
    FAULTY,
    HANDLE,
    HEAD_END,
    SECRET_BYTES,
    TEXT,
    UPDATE,
    WHOLE,
    WRITTEN,
    Address,
    Layout,
    Mapped,
)

POLL_S = 0.0005  # between two checks of the writers' progress


class ExportError(RuntimeError):
    """A writer did not write, or wrote something other than planned."""


@dataclass
class WeightMemory:
    """The memory of a writer."""

    address: Address
    mapped: Mapped
    update: int = 0  # the newest one; all writers count alike

    @staticmethod
    def make(planned: Sequence[tuple[str, TensorSpec]], gpu: str = "") -> WeightMemory:
        """Reserve memory for these tensors; with ``gpu``, the UUID of this process's, each update
        reserves it there. Raises OSError if there is not enough."""
        layout = Layout.of(list(planned))
        size = layout.head if gpu else layout.size
        descriptor = os.memfd_create("aent-weights")
        try:
            os.posix_fallocate(descriptor, 0, size)
            memory = mmap.mmap(descriptor, size)
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
            gpu,
        )
        return WeightMemory(address, Mapped(memory, layout))

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
        if self.address.gpu:
            self.mapped.buffer = cuda_ipc.reserve(self.mapped.layout.size)
            handle = json.dumps(asdict(cuda_ipc.share(self.mapped.buffer)))
            self.mapped.write_text(handle, HANDLE, HEAD_END)
        words[UPDATE] = self.update

    def leave(self) -> None:
        """Give up the GPU memory of the update that was begun: no engine reads it any more."""
        if self.address.gpu:
            self.mapped.buffer = None
            cuda_ipc.collect()

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
            self.mapped.write_text(text, TEXT, HANDLE)
            words[FAULTY] = 1
        else:
            for i, (name, _) in enumerate(planned):
                checksum = found[name].checksum
                assert checksum is not None
                unsigned = int(checksum, 16)
                words[HEAD_END // 8 + i] = unsigned - (unsigned >> 63 << 64)
        words[WHOLE] = self.update

    def put(self, place: int, tensor: Tensor) -> None:
        """Copy a tensor to its place."""
        self.mapped.tensor(place).copy_(tensor)
        if self.mapped.buffer is not None:
            cuda_ipc.finish(self.mapped.buffer)


@dataclass
class OpenedMemory:
    """Another process's memory, opened for reading."""

    pid: int
    mapped: Mapped
    device: int | None = None  # the GPU that has the tensors, as this process counts
    _reached: int = 0  # the update whose GPU memory is open

    @staticmethod
    def open(address: Address, device: int | None = None) -> OpenedMemory:
        """``device``: if the tensors are on a GPU, its number here; without it only the head can be
        read. Raises OSError if it cannot be opened, ValueError if it is another file: then the
        writer is on another machine, or in a container with its own process numbers."""
        planned = [
            (name, TensorSpec(tuple(shape), dtype))
            for name, dtype, shape in zip(address.names, address.dtypes, address.shapes)
        ]
        layout = Layout.of(planned)
        size = layout.head if address.gpu else layout.size
        path = f"/proc/{address.pid}/fd/{address.descriptor}"
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                raise ValueError(f"{path} is something else here than in the trainer")
            # a loader's writes stay in its own process
            memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        if bytes(memory[:SECRET_BYTES]).hex() != address.secret:
            raise ValueError(f"{path} is something else here than in the trainer")
        return OpenedMemory(address.pid, Mapped(memory, layout), device if address.gpu else None)

    def written(self, update: int) -> int:
        """How many tensors of this update are complete and can be read."""
        words = self.mapped.words
        if words[UPDATE] != update:
            return 0
        if self.device is not None and self._reached != update:
            handle = cuda_ipc.Handle(**json.loads(self.mapped.text(HANDLE, HEAD_END)))
            self.mapped.buffer = cuda_ipc.open_shared(handle, self.device)
            self._reached = update
        return words[WRITTEN]

    def leave(self) -> None:
        """Let go of the update's GPU memory, when everything has been read."""
        if self.mapped.buffer is not None:
            cuda_ipc.finish(self.mapped.buffer)
            self.mapped.buffer = None

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
            raise ExportError(self.mapped.text(TEXT, HANDLE))
        checksums = self.mapped.words[HEAD_END // 8 :]
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
    """The tensors that all writers got. Raises ExportError naming those that are not as planned, or
    of which two writers have different ones."""
    faults: list[str] = []
    found: Manifest = {}
    for memory in memories:
        try:
            offered = memory.offered()
        except ExportError as error:
            faults.append(str(error))
            continue
        copies = {name: spec for name, spec in offered.items() if name in found}
        known = {name: found[name] for name in copies}
        faults += [f"process {memory.pid}: {clause}" for clause in differences(known, copies)]
        found |= offered
    if faults:
        raise ExportError("; ".join(faults))
    return found
