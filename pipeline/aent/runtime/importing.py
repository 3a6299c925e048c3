"""Imports modules without the unused rest of their packages, which takes most of the time."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def bare(package: str) -> None:
    """Make a package's modules importable without running the package's own ``__init__``.

    Does nothing if the package is imported already. Raises ModuleNotFoundError if it is not
    installed.
    """
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        sys.modules[package] = importlib.util.module_from_spec(spec)


@contextmanager
def without(package: str) -> Iterator[None]:
    """Make a package look as if it were not installed."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before
