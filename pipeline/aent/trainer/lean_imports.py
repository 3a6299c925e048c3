"""Megatron and mbridge, imported without what no rank uses: half of the processor time of a start.

Importing mbridge imports every model family that it knows, and for the visual ones most of
transformers. Here its two packages are put in place without running their ``__init__``, so that a
family's module comes by itself, when it is asked for. Megatron imports wandb where it is installed
(it comes with nemo-toolkit); it does without.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type: mbridge's module


def _bare(package: str) -> None:
    """Make a package's modules importable without running the package's own code."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        sys.modules[package] = importlib.util.module_from_spec(spec)


def _import_megatron() -> None:
    hidden = sys.modules.get("wandb")
    sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("megatron.core")
    finally:
        del sys.modules["wandb"]
        if hidden is not None:
            sys.modules["wandb"] = hidden


_import_megatron()
_bare("mbridge")
_bare("mbridge.models")

from mbridge.core.auto_bridge import AutoBridge  # noqa: E402
from mbridge.core.bridge import Bridge  # noqa: E402

__all__ = ["Bridge", "bridge_of"]


def bridge_of(hf_config: Any, **options: Any) -> Bridge:
    """mbridge's description of a model, from transformers' configuration of it.

    Raises:
        ValueError: for a ``model_type`` that is not in ``FAMILIES``.
    """
    if hf_config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type {hf_config.model_type!r} is not one that the trainer knows: "
            + ", ".join(FAMILIES)
        )
    importlib.import_module(f"mbridge.models.{FAMILIES[hf_config.model_type]}")
    return AutoBridge.from_config(hf_config, **options)
