"""Time of forward and backward, beside a copy on the device and the usual alternatives."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from aent.entropy import bench, kernels
from aent.entropy.kernels import triton_path
from gpu_check.report import Row
from gpu_check.section import Section

ROUNDS = 10  # 1 in a rehearsal
SECONDS = 3.0  # after which no further round of a contender begins
PASSES = 3  # over the logits that a forward and a backward need: read, read, write
OURS = "ours"
# other sizes for the kernels than the present ones, which were chosen without a GPU
SIZES = (("ROWS", 2048), ("ROWS", 8192), ("BLOCK", 1024), ("BLOCK", 4096))

Seconds = tuple[float, float]  # of a forward, of a backward


def measure(section: Section, logits: Tensor, targets: Tensor) -> None:
    """Rows for the copy and every contender of ``aent.entropy.bench``, ours first."""
    copy = copy_rate(logits)
    section.add(Row(section.name, "copy on the device", {"GB/s": copy / 1e9}))
    settings = argparse.Namespace(device=section.device, backends=["triton"], only=[""])
    found = bench.contenders(settings, 0.33, None)
    del found["plain, compiled"]  # its compilation would take half of a case's time
    leaf = logits.clone().requires_grad_()
    floor = float("nan")
    for name in sorted(found, key=place):
        if section.left() < 3 * SECONDS:
            section.skip(name, f"{section.left():.0f} s were left")
            continue
        loss, backend = found[name]
        try:
            with kernels.using(backend) if backend else nullcontext():
                times, peak = timed(loss, leaf, logits, targets)
        except torch.cuda.OutOfMemoryError:
            passed = False if name.startswith(OURS) else None
            section.add(Row(section.name, name, passed=passed, note="out of memory"))
            torch.cuda.empty_cache()
            continue
        floor = sum(times) if name == "cross-entropy" else floor
        section.add(row(section, name, logits, times, copy, floor, peak))
    if not find_spec("liger_kernel"):
        section.skip("Liger's cross-entropy", "liger_kernel is not installed")
    for name, value in SIZES[:1] if section.rehearse else SIZES:
        what = f"forward and backward with {name} = {value}"
        section.unless_late(
            what, SECONDS, partial(other_size, section, what, name, value, leaf, logits, targets)
        )


def place(name: str) -> int:
    """The copy first, then ours: the time may be used up before the others."""
    return 0 if name == "cross-entropy" else 1 if name.startswith(OURS) else 2


def row(
    section: Section,
    name: str,
    logits: Tensor,
    times: Seconds,
    copy: float,
    floor: float,
    peak: int,
) -> Row:
    """A contender's time, in milliseconds and relative to copy and cross-entropy."""
    rate = PASSES * logits.nbytes / sum(times)
    return Row(
        section.name,
        name,
        {
            "forward ms": times[0] * 1e3,
            "backward ms": times[1] * 1e3,
            "GB/s": rate / 1e9,
            "of the copy's": rate / copy,
            "times cross-entropy": sum(times) / floor,
            "peak MiB": peak / 2**20,
        },
    )


def copy_rate(logits: Tensor) -> float:
    """Bytes read and written a second by a copy on the device."""
    out = torch.empty_like(logits)
    seconds = repeated(lambda: (run(lambda: out.copy_(logits)), 0.0))[0]
    return 2 * logits.nbytes / seconds


def timed(
    loss: Callable[[Tensor, Tensor], Tensor], leaf: Tensor, logits: Tensor, targets: Tensor
) -> tuple[Seconds, int]:
    """Medians of forward and backward, each until the device is idle; and the peak in bytes beyond
    the logits. ``leaf`` gets the logits again each time, because some contenders write the gradient
    there."""
    results: list[Tensor] = []

    def forward() -> None:
        results[:] = [loss(leaf, targets)]

    def backward() -> None:
        torch.autograd.grad(results.pop(), leaf)

    def both() -> Seconds:
        leaf.data.copy_(logits)
        return run(forward), run(backward)

    peak = bench.peak_bytes(both, logits.device.type)  # compiles, too
    return repeated(both), peak


def run(work: Callable[[], object]) -> float:
    """Seconds of the clock, from an idle device to an idle device."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def repeated(work: Callable[[], Seconds]) -> Seconds:
    """Medians over the rounds, fewer if they take long."""
    until = time.perf_counter() + (SECONDS if torch.cuda.is_available() else 0.0)
    times = [work()]
    while len(times) < ROUNDS and time.perf_counter() < until:
        times.append(work())
    forward, backward = (statistics.median(part) for part in zip(*times, strict=True))
    return forward, backward


def other_size(
    section: Section,
    what: str,
    name: str,
    value: int,
    leaf: Tensor,
    logits: Tensor,
    targets: Tensor,
) -> None:
    """Ours with another size of ``triton_path``."""
    before = getattr(triton_path, name)
    setattr(triton_path, name, value)
    try:
        with kernels.using("triton"):
            times, _ = timed(bench.ours(0.33, False, None), leaf, logits, targets)
        measured = {"forward ms": times[0] * 1e3, "backward ms": times[1] * 1e3}
        section.add(Row(section.name, what, measured))
    except Exception as error:  # of a size that aent does not use: not a failure
        section.skip(what, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    finally:
        setattr(triton_path, name, before)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
