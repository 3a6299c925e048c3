"""The backends of token statistics (see ``interface``), and which one serves a tensor."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from aent.entropy.kernels.interface import Backend

if TYPE_CHECKING:
    from aent.entropy.kernels.c_path import CPath

_forced: str | None = None


def choose(x: Tensor) -> Backend:
    """Return the backend for x [N, width].

    The C library on a CPU that has one, Triton on a GPU if it is installed (not run on one yet),
    else torch's operations.
    """
    from aent.entropy.kernels import c_path, torch_path

    on_gpu = x.is_cuda and x.shape[1] and _forced != "torch" and find_spec("triton")
    if on_gpu or _forced == "triton":
        from aent.entropy.kernels import triton_path

        return triton_path
    if x.device.type == "cpu" and _forced != "torch":
        library = c_path.load(_forced) if _forced else _best_library()
        if library is not None and library.serves(x):
            return library
    return torch_path


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use one backend for everything it supports: "torch", "triton" (on a CPU its interpreter, if
    TRITON_INTERPRET=1 was set before Triton was imported), or a variant of the C library.

    For tests and benchmarks. Raises OSError if the library cannot be built.
    """
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def cpu_path() -> str:
    """Describe the backend for token statistics on this CPU, and why no faster one is used."""
    from aent.entropy.kernels import c_path

    variant = c_path.best_variant()
    try:
        path = c_path.build.find_or_build(variant)
        c_path.load(variant)
    except OSError as error:
        return f"torch operations, several times slower than the C library: {error}"
    return f"C library for {variant} ({path})"


@functools.cache
def _best_library() -> CPath | None:
    from aent.entropy.kernels import c_path

    try:
        return c_path.load(c_path.best_variant())
    except OSError as error:
        warnings.warn(f"token statistics run on torch operations: {error}", stacklevel=2)
        return None
