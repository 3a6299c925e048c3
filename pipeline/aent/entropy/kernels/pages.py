"""Large pages for large buffers on a CPU.

The kernel maps a buffer of more than 32 MB anew each time, and the first write to each of its 4 KB
pages is a page fault. For the gradient of fp32 logits, the faults take longer than computing it.
Pages of 2 MB have 1/512 of the faults. Some kernels give large pages only on request
(transparent_hugepage/enabled: madvise, the usual setting); this module requests them. torch does so
for all its buffers if THP_MEM_ALLOC_ENABLE=1 is in the environment, as in the trainer's ranks.
"""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

LEAST = 4 << 20  # bytes: two large pages
PAGE = 4096
_ADVICE = 14  # MADV_HUGEPAGE


def with_large_pages(fresh: Tensor) -> Tensor:
    """Advise large pages for the tensor, whose memory is not written yet, and return it.

    A kernel without large pages ignores the advice. Only whole pages inside the tensor are advised,
    so it takes no more memory than before.
    """
    size = fresh.numel() * fresh.element_size()
    if fresh.device.type == "cpu" and size >= LEAST and sys.platform == "linux":
        first = -(-fresh.data_ptr() // PAGE) * PAGE
        last = (fresh.data_ptr() + size) // PAGE * PAGE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _ADVICE)
    return fresh
