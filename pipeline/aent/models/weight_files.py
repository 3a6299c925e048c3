"""Checks the weight files of a Hugging Face folder by their headers: complete, and with the model's
shapes.

They are checked before anything starts, because the trainer's ranks and vLLM trust the files.
Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aent.models.decoder import ModelFacts

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
BUFFERS = (".rotary_emb.inv_freq",)  # in old checkpoints; not read, because they are computed
DTYPES = ("F64", "F32", "F16", "BF16")
LARGEST_HEADER = 100_000_000  # bytes, the limit of safetensors
COMPARED = 1 << 24  # bytes at a time


@dataclass(frozen=True)
class StoredTensor:
    """The location of one tensor."""

    file: Path
    dtype: str  # as safetensors names it: "BF16"
    shape: tuple[int, ...]
    begin: int  # bytes from the file's beginning
    end: int


class _Fault(Exception):
    """The file cannot be used; one sentence."""


def faults(folder: Path, facts: ModelFacts) -> list[str]:
    """Why the folder's weights do not match its config.json: one sentence for each kind of fault,
    naming the file or the weight; empty if they match."""
    try:
        stored = read_headers(folder)
    except _Fault as fault:
        return [str(fault)]
    return [*_differences(folder, stored, facts)]


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by name, from the files that transformers would read."""
    stored: dict[str, StoredTensor] = {}
    index = None if (folder / WHOLE).is_file() else _index(folder)
    for file in sorted({folder / name for name in _files(folder, index)}):
        for name, tensor in _header(file).items():
            if index is not None and index.get(name) != file.name:
                raise _Fault(
                    f"{file} has the weight     {name}, for which {INDEX} names "
                    f"{index.get(name, 'no file')}"
                )
            stored[name] = tensor
    for name, file_name in (index or {}).items():
        if name not in stored:
            raise _Fault(f"{folder / file_name} does not have {name}, although {INDEX} says so")
    return stored


def _files(folder: Path, index: Mapping[str, str] | None) -> set[str]:
    """Names of the files with the weights. All programs must read the same files, but they differ:
    transformers prefers model.safetensors to an index; vLLM and the trainer prefer the index; vLLM
    prefers any consolidated*.safetensors to both, and without an index reads every
    *.safetensors."""
    there = {file.name for file in folder.glob("*.safetensors")}
    first = next((name for name in sorted(there) if name.startswith("consolidated")), None)
    if first is not None and there != {first}:
        raise _Fault(f"{folder / first}: vLLM would read it instead of the others: move it away")
    if index is None and (folder / WHOLE).is_file():
        if (folder / INDEX).is_file() and set(_index(folder).values()) != {WHOLE}:
            raise _Fault(
                f"{folder} has both {WHOLE}, which transformers reads, and {INDEX}, whose files "
                "vLLM reads: move the old ones away"
            )
        if there != {WHOLE}:
            other = min(there - {WHOLE})
            raise _Fault(f"{folder / other}: vLLM would read it besides {WHOLE}: move it away")
        return {WHOLE}
    assert index is not None
    for name in sorted(set(index.values())):
        if not (folder / name).is_file():
            raise _Fault(f"{folder / name} is missing: {INDEX} names it")
    return set(index.values())


def _index(folder: Path) -> dict[str, str]:
    """Weight -> file name."""
    file = folder / INDEX
    if not file.is_file():
        if any(folder.glob("*.safetensors")):
            raise _Fault(f"{folder} has neither {WHOLE} nor {INDEX}")
        others = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".gguf"))
        hint = f"; {others[0]} must be converted first" if others else ""
        raise _Fault(f"{folder} has no weights (*.safetensors){hint}")
    try:
        index = json.loads(file.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Fault(
            f"{file} is not an index of weights: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
        raise _Fault(f"{file} is not an index of weights: weight_map is not a table of file names")
    return index


def _header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file: 8 bytes with the length of the JSON that follows."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":
                raise _Fault(f"{file} is a Git LFS pointer, not the weights: run git lfs pull")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > LARGEST_HEADER:
                raise _Fault(f"{file} is not a safetensors file ({size} bytes)")
            if 8 + length > size:
                raise _Fault(f"{file} is cut off: its header alone should have {length} bytes")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        tensors = {
            name: StoredTensor(
                file,
                entry["dtype"],
                tuple(entry["shape"]),
                *(8 + length + offset for offset in entry["data_offsets"]),
            )
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Fault(f"{file} is not a safetensors file: {type(error).__name__}: {error}") from None
    end = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if end != size:
        kind = "is cut off" if end > size else "is not a safetensors file"
        raise _Fault(f"{file} {kind}: it has {size} bytes of {end}")
    return tensors


def _differences(folder: Path, stored: dict[str, StoredTensor], facts: ModelFacts) -> Iterator[str]:
    """Compare the stored tensors with config.json."""
    expected = facts.weights
    stored = {name: t for name, t in stored.items() if not name.endswith(BUFFERS)}
    head = stored.pop(HEAD, None) if facts.tied_embeddings else None
    missing = [name for name in expected if name not in stored]
    if missing == [HEAD]:
        yield f"{folder} has no {HEAD}, and config.json does not say tie_word_embeddings=true"
    elif missing:
        yield f"{folder} has no weight {_listed(missing)}"
    surplus = [name for name in stored if name not in expected]
    if surplus:
        yield (
            f"{stored[surplus[0]].file} has the weight {_listed(surplus)}, which "
            f"{facts.family.architecture} does not have with this config.json"
        )
    for name, tensor in stored.items():
        if tensor.dtype not in DTYPES:
            yield f"{tensor.file}: {name} is {tensor.dtype}: quantized weights cannot be trained"
            return
    wrong = [n for n, t in stored.items() if n in expected and t.shape != expected[n]]
    if wrong:
        name = wrong[0]
        yield (
            f"{stored[name].file}: {_listed(wrong)} is {list(stored[name].shape)}, but by "
            f"config.json it is {list(expected[name])}"
        )
    if head is not None and TABLE in stored and not _same(head, stored[TABLE]):
        yield (
            f"{head.file}: {HEAD} differs from {TABLE}, although config.json says "
            "tie_word_embeddings=true"
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as a, other.file.open("rb") as b:
        a.seek(one.begin)
        b.seek(other.begin)
        left = one.end - one.begin
        while left:
            piece = min(left, COMPARED)
            if a.read(piece) != b.read(piece):
                return False
            left -= piece
    return True
