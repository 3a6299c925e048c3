"""What a memory for new weights has where (``weights.memory``): its head, then the tensors.

Imports only torch: both sides import this.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aent.weights.manifest import TensorSpec

ALIGNMENT = 64  # of tensors, bytes
# The head, in words of 8 bytes: the random number, then which update is (being) written, how many
# of its tensors are complete, whether the export is not as planned, the last complete update ...
SECRET_BYTES = 32
UPDATE, WRITTEN, FAULTY, WHOLE = range(SECRET_BYTES // 8, SECRET_BYTES // 8 + 4)
# ... how the export differs from the plan, the handle of the tensors' memory if they are elsewhere;
# then the tensors' checksums, then the tensors
TEXT, HANDLE, HEAD_END = 256, 2048, 4096


@dataclass(frozen=True)
class Address:
    """Where a memory is, and its plan: names, dtypes and shapes in the export's order."""

    pid: int
    descriptor: int
    secret: str  # hex
    names: list[str]
    dtypes: list[str]  # torch's names: "float32"
    shapes: list[list[int]]
    gpu: str = ""  # UUID of the one whose memory has the tensors; empty: the file has them


@dataclass(frozen=True)
class Layout:
    """Positions in a memory, bytes from its start."""

    planned: list[tuple[str, TensorSpec]]
    offsets: list[int]
    size: int

    @property
    def head(self) -> int:
        """Bytes before the tensors."""
        return HEAD_END + 8 * len(self.planned)

    @staticmethod
    def of(planned: list[tuple[str, TensorSpec]]) -> Layout:
        end, offsets = HEAD_END + 8 * len(planned), []
        for _, spec in planned:
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            offsets.append(begin)
            end = begin + math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize
        return Layout(planned, offsets, end)


@dataclass
class Mapped:
    """A memory mapped into this process."""

    memory: mmap.mmap
    layout: Layout
    words: Any = field(init=False, repr=False)  # the head and the checksums, as signed integers
    # [layout.size] uint8 on a GPU: the tensors at their offsets, in place of those in the file
    buffer: Tensor | None = None

    def __post_init__(self) -> None:
        self.words = memoryview(self.memory)[: self.layout.head].cast("q")

    def tensor(self, place: int) -> Tensor:
        """The tensor at a place of the plan; it shares the memory."""
        _, spec = self.layout.planned[place]
        dtype = getattr(torch, spec.dtype)
        count = math.prod(spec.shape)
        if count == 0:
            return torch.empty(spec.shape, dtype=dtype)
        offset = self.layout.offsets[place]
        if self.buffer is not None:
            return (
                self.buffer[offset : offset + count * dtype.itemsize].view(dtype).view(spec.shape)
            )
        flat = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=offset)
        return flat.view(spec.shape)

    def write_text(self, text: str, begin: int, end: int) -> None:
        """Into a place of the head that ends with a zero."""
        room = end - begin - 1
        self.memory[begin:end] = text.encode()[:room].ljust(room + 1, b"\0")

    def text(self, begin: int, end: int) -> str:
        """What is there."""
        return bytes(self.memory[begin:end]).partition(b"\0")[0].decode(errors="replace")
