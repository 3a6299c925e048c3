"""Profiles of single steps: the recipe's section ``profile``.

torch.profiler writes ``run_dir/profiles/step_N_rankR.json.gz``, which https://ui.perfetto.dev
opens, with the phases of the step as ranges around torch's operators. On a GPU they are also NVTX
ranges, which Nsight Systems shows (not run on a GPU). If a trace cannot be written, the run
continues without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from aent.recipe.operation import ProfileSection
from aent.runtime import distributed
from aent.runtime.log import log
from aent.runtime.phases import Phases

FOLDER = "profiles"
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices that show the peak
REPEATS = 8


def finished(run_dir: Path) -> list[Path]:
    """The complete traces."""
    return sorted(run_dir.glob(f"{FOLDER}/step_*.json.gz"))


class Profiler:
    """Records a trace of each step that the recipe names, on one rank."""

    def __init__(self, settings: ProfileSection, run_dir: Path, phases: Phases, rank: int) -> None:
        self._steps = frozenset(settings.steps) if rank in settings.ranks else frozenset()
        self._run_dir, self._phases, self._rank = run_dir, phases, rank
        self._running: profile | None = None
        self._path = Path()

    def at(self, step: int) -> None:
        """This step begins; the trace of the step before ends, if there is one."""
        self.end()
        if step not in self._steps:
            return
        name = f"step_{step:06d}_rank{self._rank}.json.gz"
        self._path = self._run_dir / FOLDER / name
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._running = profile(activities=activities)
        self._running.start()
        self._phases.around = _range

    def end(self) -> None:
        """Write the trace that is being recorded, if there is one."""
        running, self._running = self._running, None
        if running is None:
            return
        self._phases.around = lambda name: nullcontext()
        try:
            running.stop()
            self._path.parent.mkdir(exist_ok=True)
            partial = self._path.with_name("." + self._path.name)
            running.export_chrome_trace(str(partial))
            os.replace(partial, self._path)
        except (OSError, RuntimeError) as error:
            log.warning(f"aent: {self._path}: {error} (the rank continues without this trace)")


@contextmanager
def _range(name: str) -> Iterator[None]:
    """Mark a phase in the trace."""
    nvtx = torch.cuda.nvtx.range(name) if torch.cuda.is_available() else nullcontext()
    with nvtx, record_function(name):
        yield


def peak_flops(settings: ProfileSection, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of all ranks together; None if the recipe does not ask for it. Collective.

    Measured: the fastest of ``REPEATS`` products of two square matrices, on all ranks at once.
    """
    if settings.peak_tflops is not None:
        return settings.peak_tflops * 1e12 * dist.get_world_size()
    if not settings.measure_peak:
        return None
    device = distributed.device()
    size = PRODUCT[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    dist.barrier(group=distributed.control_group())
    best = min(_seconds(left, right) for _ in range(REPEATS))
    peak = torch.tensor(2 * size**3 / best, dtype=torch.float64)
    dist.all_reduce(peak, group=distributed.control_group())
    return float(peak)


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    """Seconds that one product takes."""
    on_gpu = left.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    left @ right
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
