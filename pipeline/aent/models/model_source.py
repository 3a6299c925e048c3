"""The policy's source: a Hugging Face folder, given or created once in the cache.

A bundled model is written as a plain Hugging Face folder (config.json, generation_config.json,
model.safetensors, tokenizer.json, tokenizer_config.json), so that transformers, vLLM and the
trainer's bridge read it like any other. It imports neither torch nor transformers, and downloads
nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aent.models.bundled import smollm2, tiny_qwen2
from aent.recipe.schema import ModelSection


def resolve(section: ModelSection) -> Path:
    """Return the Hugging Face folder of the policy; a bundled one is created on first use.

    Raises ValueError if the recipe names no model or two, FileNotFoundError if the folder lacks
    config.json or safetensors, or if the package of a bundled model is not installed.
    """
    _check_one(section)
    if section.path is not None:
        folder = _folder(section.path)
        if not any(folder.glob("*.safetensors")):
            raise FileNotFoundError(f"model.path: {folder} has no *.safetensors file")
        return folder.resolve()
    stamp, make = _BUNDLED[section.bundled or ""]
    return _made_once(f"{section.bundled}-{stamp()}", make)


def is_made(bundled: str) -> bool:
    """Whether this bundled model is in the cache folder. Raises FileNotFoundError if its package is
    not installed."""
    stamp, _ = _BUNDLED[bundled]
    return (cache_folder() / f"{bundled}-{stamp()}").is_dir()


def hf_config(section: ModelSection) -> dict[str, Any]:
    """Return the policy's config.json as a dict, without writing anything."""
    _check_one(section)
    if section.path is not None:
        return json.loads((_folder(section.path) / "config.json").read_text())
    return dict(smollm2.CONFIG if section.bundled == "smollm2-135m-instruct" else tiny_qwen2.CONFIG)


def cache_folder() -> Path:
    """Return $AENT_CACHE, or aent's folder in the user's cache."""
    if "AENT_CACHE" in os.environ:
        return Path(os.environ["AENT_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "aent"


def _check_one(section: ModelSection) -> None:
    if (section.path is None) == (section.bundled is None):
        raise ValueError("model: give exactly one of model.path and model.bundled")


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"model.path: there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model.path: {folder} has no config.json")
    return folder


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return cache/NAME. Create it under another name and rename it, so that it is complete or
    absent."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        unfinished.chmod(0o755)
        make(unfinished)
        try:
            unfinished.rename(target)
        except OSError:
            # otherwise another process was faster, and its copy is the same
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


# (suffix of the folder's name, to be raised if the written files change; maker)
_BUNDLED: dict[str, tuple[Callable[[], str], Callable[[Path], None]]] = {
    "smollm2-135m-instruct": (
        lambda: f"{smollm2.installed().version}-1",
        smollm2.make,
    ),
    "tiny-qwen2": (lambda: "2", tiny_qwen2.make),
}
