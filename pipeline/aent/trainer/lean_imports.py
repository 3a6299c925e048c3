"""Imports Megatron and mbridge without parts that no rank uses, in half of the processor time.

Importing mbridge imports every model family that it knows, and for the visual ones most of
transformers. Here its package is registered without running its ``__init__``, so that only its core
is imported. Megatron imports wandb if it is installed (nemo-toolkit requires it), and transformers
scikit-learn, for one way of generation; both work without. On a CPU, Megatron passes none of its
functions to torch.compile, as it otherwise does on import: that alone would import torch's
compiler.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from transformers.utils import is_sklearn_available

from aent.runtime.environment import device_kind
from aent.runtime.importing import bare, without


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Let torch.compile return a function unchanged; Megatron keeps it for its later imports."""

    def compile(function: Any = None, **_options: Any) -> Any:
        return function if function is not None else lambda function: function

    before, torch.compile = torch.compile, cast(Any, compile)
    try:
        yield
    finally:
        torch.compile = before


with without("wandb"), _uncompiled() if device_kind() == "cpu" else nullcontext():
    importlib.import_module("megatron.core")
with without("sklearn"):
    is_sklearn_available()  # transformers caches the answer
bare("mbridge")
