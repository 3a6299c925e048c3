"""Process groups, seeds and threads of a trainer rank.

This has not run on a GPU (nccl) yet; it uses the same calls there.
"""

from __future__ import annotations

import math
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from aent.layout.parallel import ParallelLayout
from aent.recipe.training import TrainerSection
from aent.runtime import megatron_cpu, rank

T = TypeVar("T")
_control_group: dist.ProcessGroup | None = None


def initialize(settings: TrainerSection, seed: int, control_timeout_s: float = 4 * 3600.0) -> None:
    """Join this rank to the job: process groups, Megatron's parallel state, seeds, threads.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT (torchrun's variables; a
    default process group that exists already is used as it is).

    Args:
        settings: the layout, which must have WORLD_SIZE ranks, and the collectives' time-out.
        seed: of the run; ranks derive theirs from it by Megatron's rules.
        control_timeout_s: deadline of collectives on ``control_group``.

    Raises:
        ValueError: if the layout does not fill the world.
    """
    global _control_group
    from megatron.core import parallel_state, tensor_parallel

    megatron_cpu.enter()
    layout = ParallelLayout.of(settings)
    world = int(os.environ["WORLD_SIZE"])
    if layout.num_ranks != world:
        raise ValueError(
            f"the recipe's trainer has {layout.num_ranks} ranks ({layout}), but {world} ranks were "
            "started"
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        local_rank = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(rank.own_device(local_rank, torch.cuda.device_count()))
    else:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        default = max(1, (os.cpu_count() or 1) // ranks_here)
        torch.set_num_threads(settings.threads_per_rank or default)
    timeout_s = settings.collective_timeout_s
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s))
    if on_gpu:
        store = dist.distributed_c10d._get_default_store()
        name = f"GPU {torch.cuda.get_device_properties().uuid} of {socket.gethostname()}"
        rank.assert_own_devices(store, dist.get_rank(), world, name)
    parallel_state.initialize_model_parallel(
        **layout.megatron_sizes,
        distributed_timeout_minutes=max(1, math.ceil(timeout_s / 60)),
    )
    _control_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=control_timeout_s))
    torch.manual_seed(seed)
    with megatron_cpu.device_mode():
        tensor_parallel.model_parallel_cuda_manual_seed(seed)


def control_group() -> dist.ProcessGroup:
    """The gloo group of all ranks with a long deadline, for CPU tensors and waits for rank 0."""
    if _control_group is None:
        raise RuntimeError(
            "aent.runtime.distributed.initialize has not been called in this process"
        )
    return _control_group


def everyones(value: T, error: Exception | None, what: str) -> list[T]:
    """What every rank has done, in rank order, on every rank. Collective over ``control_group``.

    Args:
        value: this rank's; it is pickled.
        error: what went wrong here, if anything did.
        what: what a rank could not do, as a clause.

    Raises:
        RuntimeError: on every rank, with the reason, if a rank has an error.
    """
    # as text: an error of torch's or of pickling need not be one that can be pickled
    why = None if error is None else f"{type(error).__name__}: {error}"
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (why, None if why else value), control_group())
    for rank_of, (reason, _) in enumerate(told):
        if reason is not None:
            raise RuntimeError(f"rank {rank_of} could not {what}: {reason}") from error
    return [value for _, value in told]


def device() -> torch.device:
    """The device that this rank computes on."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def peak_memory() -> list[int]:
    """The most bytes that each rank has held, in rank order (collective): resident memory on a CPU,
    from torch's allocator on a GPU."""
    peaks = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    on_gpu = torch.cuda.is_available()
    peaks[dist.get_rank()] = torch.cuda.max_memory_allocated() if on_gpu else _resident_peak()
    dist.all_reduce(peaks, group=control_group())
    return peaks.tolist()


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def shutdown() -> None:
    """Leave the job: destroy Megatron's groups and the default one."""
    global _control_group
    from megatron.core import parallel_state

    _control_group = None
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
