"""Megatron and mbridge, imported without what no rank uses: half of the processor time of a start.

Importing mbridge imports every model family that it knows, and for the visual ones most of
transformers. Here its package is put in place without running its ``__init__``, so that its core
comes by itself. Megatron imports wandb where it is installed (it comes with nemo-toolkit), and
transformers scikit-learn, for a way to generate; they do without. On a CPU Megatron gives none of
its functions to torch.compile, which it does while it is imported: that alone imports torch's
compiler.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers.utils import is_sklearn_available

from aent.runtime.environment import device_kind
from aent.runtime.importing import bare, without


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Let torch.compile return a function as it is; Megatron keeps that for its later imports."""

    def compile(function: Any = None, **_options: Any) -> Any:
        return function if function is not None else lambda function: function

    before, torch.compile = torch.compile, compile  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = before


with without("wandb"), _uncompiled() if device_kind() == "cpu" else nullcontext():
    importlib.import_module("megatron.core")
with without("sklearn"):
    is_sklearn_available()  # transformers keeps the answer
bare("mbridge")
