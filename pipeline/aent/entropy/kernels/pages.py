"""Large pages for large buffers on a CPU.

A buffer of more than 32 MB comes from the kernel anew each time, and the first write to each of its
4 KB pages is a fault: for the gradient of fp32 logits that takes longer than to compute it. With
pages of 2 MB there is one fault in five hundred. Kernels that give large pages on request only
(transparent_hugepage/enabled: madvise, the usual setting) are asked here; torch asks for all its
buffers where THP_MEM_ALLOC_ENABLE=1 is in the environment, as in the trainer's ranks.
"""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

LEAST = 4 << 20  # bytes: two large pages
PAGE = 4096
_ADVICE = 14  # MADV_HUGEPAGE


def with_large_pages(fresh: Tensor) -> Tensor:
    """The tensor itself, whose memory nobody has written to yet.

    It is advice: without large pages the kernel says no, and everything is as it was. Whole pages
    inside of the tensor are meant, so it holds no more memory than before.
    """
    size = fresh.numel() * fresh.element_size()
    if fresh.device.type == "cpu" and size >= LEAST and sys.platform == "linux":
        first = -(-fresh.data_ptr() // PAGE) * PAGE
        last = (fresh.data_ptr() + size) // PAGE * PAGE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _ADVICE)
    return fresh
