"""Model folders for tests of code that reads only config.json and the headers of weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from aent.models.config_json import read


def write(folder: Path, config: dict[str, Any], **weights: tuple[int, ...] | None) -> Path:
    """A folder with this config.json, a tokenizer without tokens and a model.safetensors of its
    shapes, all zeros: a hole in the file, which takes no room. ``weights`` adds or, by None, leaves
    out some."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text("{}")
    shapes = read(config, "config.json").weights | weights
    write_weights(folder / "model.safetensors", {n: s for n, s in shapes.items() if s is not None})
    return folder


def write_weights(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """A safetensors file of zeros; every element has two bytes, whatever ``dtype`` says."""
    end, header = 0, {}
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
