"""Which NCCL a process has loaded. Both ends of a group need the same one: from 2.23.4 on NCCL
refuses to form a group of different versions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")
Version = tuple[int, int, int]  # major, minor, patch


def version_of(number: int) -> Version:
    """The version that NCCL's ``ncclGetVersion`` calls ``number`` (NCCL_VERSION in nccl.h)."""
    thousands = 1_000 if number < 10_000 else 10_000  # up to 2.8, and since
    return number // thousands, number % thousands // 100, number % 100


def loaded_version() -> Version:
    """Of the library in this process; where torch has NCCL built in, of that.

    ``torch.cuda.nccl.version`` alone would be that of the headers torch was built with.
    Raises RuntimeError where there is no NCCL. It was run with a stand-in for the library, for want
    of a GPU.
    """
    paths = {line.split(maxsplit=5)[-1].strip() for line in MAPS.read_text().splitlines()}
    libraries = sorted(path for path in paths if Path(path).name.startswith("libnccl.so"))
    if not libraries:
        if not torch.cuda.is_available():
            raise RuntimeError("this process has loaded no NCCL")
        major, minor, patch, *_ = torch.cuda.nccl.version()
        return major, minor, patch
    number = ctypes.c_int()
    result = ctypes.CDLL(libraries[0]).ncclGetVersion(ctypes.byref(number))
    if result != 0:
        raise RuntimeError(f"{libraries[0]}: ncclGetVersion returned {result}")
    return version_of(number.value)
