"""Writes the policy as a Hugging Face folder; no rank ever holds the whole policy.

Each pipeline stage writes its own weight files: the first rank of a stage gathers one parameter
after the other and keeps at most the parameters of one file. Rank 0 adds the rest of the folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from aent.runtime import distributed
from aent.trainer.export import Exporter

# largest weight file, unless one tensor is larger; huggingface_hub's value
FILE_BYTES = 5 * 10**9
# weights in any format, which must not be copied from the original model's folder
WEIGHT_FILES = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot",
    ".onnx", ".onnx_data", ".gguf", ".ggml", ".tflite", ".npz", ".nemo",
)  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file."""

    stage: int  # the pipeline stage that writes it
    name: str
    sizes: dict[str, int]  # bytes by Hugging Face name, in the order of gathering


def plan(exporter: Exporter, limit: int = FILE_BYTES) -> list[WeightFile]:
    """The files of all stages, with at most ``limit`` bytes of weights each: the same on every
    rank, and for one stage as ``huggingface_hub`` names and fills them."""
    groups: list[tuple[int, dict[str, int]]] = []
    shapes = exporter.bridge.facts.weights
    for shard in exporter.shards:
        for name in exporter.bridge._weight_name_mapping_mcore_to_hf(shard.name):
            size = math.prod(shapes[name]) * shard.dtype.itemsize
            stage, sizes = groups[-1] if groups else (-1, {})
            if stage != shard.stage or sum(sizes.values()) + size > limit:
                groups.append((shard.stage, {}))
            groups[-1][1][name] = size
    if len(groups) == 1:
        return [WeightFile(groups[0][0], "model.safetensors", groups[0][1])]
    return [
        WeightFile(stage, f"model-{number:05d}-of-{len(groups):05d}.safetensors", sizes)
        for number, (stage, sizes) in enumerate(groups, 1)
    ]


def save_pretrained(
    exporter: Exporter, source: Path, target: Path, limit: int = FILE_BYTES
) -> None:
    """Write a Hugging Face folder: safetensors, config.json, and the tokenizer of ``source``.

    Collective. It is written under a temporary name, which becomes ``target`` when it is complete;
    every rank must see its folder. In host memory, a stage's first rank holds the weights of one
    file, at most ``limit`` bytes; on its device, the parameter that it gathers.

    Raises:
        RuntimeError: on every rank, if ``target`` exists or a rank could not write.
    """
    partial = target.with_name(target.name + ".partial")
    rank, files = dist.get_rank(), plan(exporter, limit)
    _told(lambda: _begin(source, target, partial) if rank == 0 else None, f"begin {partial}")
    _told(lambda: _write(exporter, files, partial), f"write its weights to {partial}")
    _told(lambda: _end(exporter, files, partial, target) if rank == 0 else None, f"end {partial}")


def _told(work: Callable[[], None], what: str) -> None:
    """Do this rank's part; an error of any rank is raised on all."""
    error = None
    try:
        work()
    except Exception as caught:
        error = caught
    distributed.everyones(None, error, what)


def _begin(source: Path, target: Path, partial: Path) -> None:
    """Create the folder, with everything except weights."""
    if target.exists():
        raise FileExistsError(f"{target} exists: a saved model is never written over")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHT_FILES):
            shutil.copy2(file, partial / file.name)


def _write(exporter: Exporter, files: list[WeightFile], partial: Path) -> None:
    """Write this stage's weight files. The ranks of a stage iterate over all of its parameters even
    if a file fails: the error is raised at the end, so that no rank waits for one that has left.
    Other copies of the weights take no part."""
    mine = iter(file for file in files if file.stage == exporter.place.pipeline)
    error: Exception | None = None
    for file, tensors in _gathered(exporter.stage(), mine):
        try:
            if error is None:
                _check(exporter, tensors)
                save_file(tensors, partial / file.name, metadata={"format": "pt"})
        except Exception as caught:
            error = caught
    if error is not None:
        raise error


def _gathered(
    weights: Iterable[tuple[str, Tensor]], files: Iterator[WeightFile]
) -> Iterator[tuple[WeightFile, dict[str, Tensor]]]:
    """Each file with its tensors, copied to host memory, which are released afterwards."""
    held: dict[str, Tensor] = {}
    file = None
    for name, tensor in weights:
        file = file or next(files)
        held[name] = tensor.to("cpu", copy=True)
        if len(held) == len(file.sizes):
            yield file, held
            held.clear()  # the caller's too: never two files at a time
            file = None


def _check(exporter: Exporter, tensors: dict[str, Tensor]) -> None:
    shapes = exporter.bridge.facts.weights
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, and config.json says {shapes[name]}"
            )


def _end(exporter: Exporter, files: list[WeightFile], partial: Path, target: Path) -> None:
    """Write the index and the configuration, and rename the folder."""
    if len(files) > 1:
        where = {name: file.name for file in files for name in file.sizes}
        total = sum(size for file in files for size in file.sizes.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (partial / "model.safetensors.index.json").write_text(text)
    config = json.loads((partial / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(exporter.bridge.dtype).removeprefix("torch.")
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, target)
