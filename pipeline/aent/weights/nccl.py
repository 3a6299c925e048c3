"""The version of NCCL that a process has loaded. Both ends of a group need the same one: since
2.23.4, NCCL refuses to form a group of different versions."""

from __future__ import annotations

import ctypes
import os

import torch

NAME = "libnccl.so.2"
Version = tuple[int, int, int]  # major, minor, patch


def version_of(number: int) -> Version:
    """The version that NCCL's ``ncclGetVersion`` calls ``number`` (NCCL_VERSION in nccl.h)."""
    thousands = 1_000 if number < 10_000 else 10_000  # up to 2.8, and since
    return number // thousands, number % thousands // 100, number % 100


def loaded_version() -> Version:
    """The version of the library that torch uses in this process, or of the one built into torch.

    ``torch.cuda.nccl.version`` would be the version of the headers that torch was built with.
    Raises RuntimeError if there is no NCCL. Only run with a stand-in for the library, since there
    was no GPU.
    """
    try:
        # by name, without loading it: if there are several copies, the one that torch found first
        library = ctypes.CDLL(NAME, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        if not torch.cuda.is_available():
            raise RuntimeError("this process has loaded no NCCL") from None
        major, minor, patch, *_ = torch.cuda.nccl.version()
        return major, minor, patch
    number = ctypes.c_int()
    result = library.ncclGetVersion(ctypes.byref(number))
    if result != 0:
        raise RuntimeError(f"{NAME}: ncclGetVersion returned {result}")
    return version_of(number.value)
