"""The backend for CPUs: rows.c, compiled for what this processor has, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from aent.entropy.kernels import build
from aent.entropy.kernels.interface import Gradient, Scan, Sums

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def best_variant() -> str:
    """Return the fastest variant of rows.c that this processor can run."""
    simd = torch.backends.cpu.get_cpu_capability()
    # private, and not in every torch; without it plain AVX-512 is used
    if simd == "AVX512" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return "avx512_bf16"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(simd, "portable")


@functools.cache
def load(variant: str) -> CPath:
    """Return the backend of one variant. Raises OSError with one sentence if there is none."""
    path = build.find_or_build(variant)
    return CPath(variant, ctypes.CDLL(str(path)))


class CPath:
    """The four functions of kernels/__init__.py for fp32, bf16 and fp16 logits on a CPU."""

    def __init__(self, variant: str, library: ctypes.CDLL) -> None:
        self.variant, self.library = variant, library

    def serves(self, x: Tensor) -> bool:
        """Whether the library supports the device and dtype of x [N, width]."""
        known = x.dtype in KINDS and not (x.dtype == torch.float16 and self.variant == "portable")
        return known and x.device.type == "cpu" and x.shape[1] > 0

    def forward(
        self, x: Tensor, k: int, temperature: float, squares: bool = False
    ) -> tuple[Sums, Tensor, Tensor]:
        sums = torch.empty(8 if squares else 5, x.shape[0])
        threshold = torch.empty(x.shape[0])
        cut = torch.empty(x.shape[0], dtype=torch.int32)
        to_log2 = _to_log2(temperature)
        arguments = (ctypes.c_int64(k), to_log2, ctypes.c_int(squares), sums, threshold, cut)
        self._call("aent_forward", *_matrix(x), *arguments)
        return Sums.of(tuple(sums)), threshold, cut

    def propose(self, x: Tensor, share: float) -> Tensor:
        ends = torch.empty(4, x.shape[0])
        self._call("aent_propose", *_matrix(x), ctypes.c_double(share), ends)
        return ends

    def scan(
        self,
        x: Tensor,
        temperature: float,
        low: Tensor | None,
        high: Tensor | None,
        capacity: int,
        squares: bool = False,
    ) -> Scan:
        sums = torch.empty(8 if squares else 5, x.shape[0])
        counts = torch.zeros(2, x.shape[0], dtype=torch.int32)
        values = torch.empty(x.shape[0], capacity)
        columns = torch.empty(x.shape[0], capacity, dtype=torch.int32)
        self._call(
            "aent_scan", *_matrix(x), _to_log2(temperature), ctypes.c_int(squares), low, high,
            ctypes.c_int64(capacity), sums, counts[0], counts[1], values, columns,
        )  # fmt: skip
        return Scan(Sums.of(tuple(sums)), counts[0], counts[1], values, columns)

    def backward(
        self, x: Tensor, out: Tensor, rows: Gradient, temperature: float, start: int
    ) -> None:
        per_row = [None if t is None else t.contiguous() for t in rows]
        code, pointer, stride, number, width = _matrix(x)
        self._call(
            "aent_backward", code, pointer, stride, out, ctypes.c_int64(out.stride(0)), number,
            width, _to_log2(temperature), ctypes.c_int64(start), *per_row,
        )  # fmt: skip

    def _call(self, name: str, *arguments: object) -> None:
        """Call a function of the library; tensors are passed by address, None as NULL."""
        addresses = [
            ctypes.c_void_p(a.data_ptr() if isinstance(a, Tensor) else None)
            if a is None or isinstance(a, Tensor)
            else a
            for a in arguments
        ]
        if getattr(self.library, name)(*addresses, ctypes.c_int(torch.get_num_threads())):
            raise MemoryError(f"{name}: not enough memory for a row's scratch space")


def _to_log2(temperature: float) -> ctypes.c_float:
    return ctypes.c_float(1 / (temperature * math.log(2)))


def _matrix(x: Tensor) -> tuple[object, ...]:
    """Arguments that describe x: kind, address, stride between rows, rows, columns."""
    assert x.stride(1) == 1 or x.shape[1] == 1, "the vocabulary must be the contiguous dimension"
    numbers = (ctypes.c_int64(n) for n in (x.stride(0), *x.shape))
    return ctypes.c_int(KINDS[x.dtype]), x, *numbers
