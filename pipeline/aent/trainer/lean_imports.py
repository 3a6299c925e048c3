"""Megatron and mbridge, imported without what no rank uses: half of the processor time of a start.

Importing mbridge imports every model family that it knows, and for the visual ones most of
transformers. Here its package is put in place without running its ``__init__``, so that its core
comes by itself. Megatron imports wandb where it is installed (it comes with nemo-toolkit), and
transformers scikit-learn, for a way to generate; they do without.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import is_sklearn_available


def _bare(package: str) -> None:
    """Make a package's modules importable without running the package's own code."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        sys.modules[package] = importlib.util.module_from_spec(spec)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Let a package look as if it were not installed."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before


with _without("wandb"):
    importlib.import_module("megatron.core")
with _without("sklearn"):
    is_sklearn_available()  # transformers keeps the answer
_bare("mbridge")
