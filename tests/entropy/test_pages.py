"""Large pages are requested if that pays, and nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from aent.entropy.kernels.pages import LEAST, with_large_pages

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
asked = pytest.mark.skipif(not THP.exists(), reason="this kernel has no large pages")


def flags_at(address: int) -> set[str]:
    """The kernel's description of the mapping that contains an address (/proc/self/smaps)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if ends := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(ends[1], 16) <= address < int(ends[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError(f"no mapping has {address:#x}")


@asked
def test_a_large_buffer_is_advised_and_a_small_one_is_not() -> None:
    large, small = torch.empty(64 << 20, dtype=torch.uint8), torch.empty(LEAST // 8)
    assert with_large_pages(large) is large
    assert with_large_pages(small) is small
    assert "hg" in flags_at(large.data_ptr() + large.numel() // 2)
    assert "hg" not in flags_at(small.data_ptr() + LEAST // 8)
    large.fill_(7)
    assert (large == 7).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2_000_001,)])
def test_any_shape_will_do(shape: tuple[int, ...]) -> None:
    made = with_large_pages(torch.empty(shape))
    assert made.shape == shape
    made.zero_()
    assert not made.any()
