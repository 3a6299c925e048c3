"""What a set of weights must look like: names, shapes, dtypes and checksums of its tensors.

Both sides of a weight transfer use it, so it imports only torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

TIED_HEAD = "lm_head.weight"  # a copy of the embedding if embeddings are tied: never sent
BUFFERS = (".rotary_emb.inv_freq",)  # in old checkpoints; models compute them

_PERIOD = 1 << 16  # words per partial sum
# at most half as wide as the sum, so that a change in a word's top bits stays in it
_WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor, without its content."""

    shape: tuple[int, ...]
    dtype: str  # torch's name: "float32"
    checksum: str | None = None  # see ``checksum``; None: not known

    @staticmethod
    def of(tensor: Tensor) -> TensorSpec:
        """The tensor's shape, dtype and checksum."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        return TensorSpec(tuple(tensor.shape), dtype, checksum(tensor))


Manifest = dict[str, TensorSpec]


def checksum(tensor: Tensor) -> str:
    """64 bits, as hex, of the tensor's bytes and their positions; equal on every device.

    A sum over the tensor's words, each times an odd factor of its position, modulo 2^64. Any one
    changed word changes it; so do a transposition and two exchanged rows.
    """
    return _total(tensor.numel(), _sums(tensor).tolist())


def _sums(tensor: Tensor) -> Tensor:
    """[ceil(words / _PERIOD)] int64, on the tensor's device: the partial sums of a checksum."""
    words = tensor.detach().contiguous().view(-1).view(_WORD[tensor.element_size()])
    factors = _factors(str(tensor.device))
    # on a CPU one period at a time, so that its products (int64) stay in the cache
    periods = 1 if tensor.device.type == "cpu" else 256
    whole = words.numel() // _PERIOD * _PERIOD
    rows = words[:whole].view(-1, _PERIOD).split(periods) if whole else ()
    sums = [(block * factors).sum(dim=1) for block in rows]
    rest = words[whole:]
    sums.append((rest * factors[: rest.numel()]).sum()[None])
    return torch.cat(sums)


def _total(numel: int, sums: Iterable[int]) -> str:
    total = numel
    for value in sums:
        total = (total * 0x9E3779B97F4A7C15 + value) % 2**64
    return f"{total:016x}"


@dataclass
class Checksums:
    """Checksums of tensors that pass one after another, read once at the end: a GPU computes them
    on a separate stream, beside its other work, and the host does not wait for each."""

    specs: Manifest = field(default_factory=dict)  # without checksums
    _pending: list[tuple[str, int, Tensor]] = field(default_factory=list)
    _stream: torch.cuda.Stream | None = None

    def add(self, name: str, tensor: Tensor) -> TensorSpec:
        """Add a tensor, which must keep its value until ``manifest``; return its description,
        without the checksum."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        spec = self.specs[name] = TensorSpec(tuple(tensor.shape), dtype)
        self._pending.append((name, tensor.numel(), self._computed(tensor)))
        return spec

    def _computed(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return _sums(tensor)
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            sums = _sums(tensor)
        tensor.record_stream(self._stream)
        return sums

    def manifest(self) -> Manifest:
        """All tensors that were added, with their checksums."""
        if self._stream is not None:
            self._stream.synchronize()
        for name, numel, sums in self._pending:
            spec = self.specs[name]
            self.specs[name] = TensorSpec(spec.shape, spec.dtype, _total(numel, sums.tolist()))
        self._pending.clear()
        return self.specs


@lru_cache
def _factors(device: str) -> Tensor:
    """[_PERIOD] int64: scattered odd numbers, the same on every device (integers wrap around)."""
    factors = torch.arange(1, _PERIOD + 1, device=device) * 0x2545F4914F6CDD1D
    factors = (factors ^ (factors >> 31)) * 0x369DEA0F31A53F85
    return (factors ^ (factors >> 29)) | 1


def expected_manifest(
    model_path: Path, dtype: str | None = None, content: bool = False
) -> Manifest:
    """The tensors that an update of this model must carry, from its folder's safetensors.

    Args:
        model_path: a Hugging Face folder.
        dtype: of the tensors that the trainer sends (default: as in the files).
        content: with checksums of the tensors, cast to ``dtype``, as for an unchanged policy.

    Raises:
        FileNotFoundError: the folder has no safetensors.
    """
    from aent.models.facts import folder_facts  # late: vLLM's workers do not need it

    tied = folder_facts(model_path).tied_embeddings
    manifest = {}
    for name, stored in _stored_tensors(model_path):
        if (tied and name == TIED_HEAD) or name.endswith(BUFFERS):
            continue
        sent = str(stored.dtype).removeprefix("torch.") if dtype is None else dtype
        if content:
            manifest[name] = TensorSpec.of(stored.to(getattr(torch, sent)))
        else:  # without reading it
            manifest[name] = TensorSpec(tuple(stored.shape), sent)
    return manifest


def _stored_tensors(model_path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    files = sorted(model_path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{model_path} has no *.safetensors file")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                yield name, tensors.get_tensor(name)


def differences(expected: Mapping[str, TensorSpec], found: Mapping[str, TensorSpec]) -> list[str]:
    """One clause per tensor that is missing, unexpected or different (checksum if both have it)."""
    clauses = [f"{name} is missing" for name in expected if name not in found]
    for name, spec in found.items():
        wanted = expected.get(name)
        if wanted is None:
            clauses.append(f"{name} is not expected")
        elif spec.shape != wanted.shape:
            clauses.append(f"{name} has shape {list(spec.shape)}, not {list(wanted.shape)}")
        elif spec.dtype != wanted.dtype:
            clauses.append(f"{name} has dtype {spec.dtype}, not {wanted.dtype}")
        elif None not in (spec.checksum, wanted.checksum) and spec.checksum != wanted.checksum:
            clauses.append(f"{name} has other content (checksum {spec.checksum}, not "
                           f"{wanted.checksum})")  # fmt: skip
    return clauses
