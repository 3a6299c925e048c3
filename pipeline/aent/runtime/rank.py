"""This process's rank in the job, from torchrun's variables or from Slurm's."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist

    from aent.recipe.training import TrainerSection

SMI_S = 20.0  # seconds for nvidia-smi to answer

# torchrun's variable -> what srun sets for each task
SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
}


def read_place() -> int:
    """Set torchrun's variables from Slurm's if srun started this process; return the rank.

    srun started it if Slurm has numbered this task and no torchrun runs inside it; RANK and similar
    variables that a shell had before are ignored. The batch script sets MASTER_ADDR and
    MASTER_PORT. Raises RuntimeError naming missing variables.
    """
    if "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        for name, source in SLURM.items():
            os.environ.pop(name, None)
            if source in os.environ:
                os.environ[name] = os.environ[source]
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"a trainer rank must be started by aent train, torchrun or srun: {', '.join(missing)} "
            "not in its environment"
        )
    return int(os.environ["RANK"])


def given_gpus() -> set[str] | None:
    """The GPUs of this machine that Slurm gave to this step, by the driver's indices or UUIDs; None
    if unknown."""
    names = ["CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS"]
    if os.environ.get("SLURM_JOB_NUM_NODES") == "1":  # otherwise it describes the job's first node
        names.append("SLURM_JOB_GPUS")
    given = next((os.environ[name] for name in names if os.environ.get(name)), None)
    return None if given is None else set(given.split(","))


def keep_to_given_gpus() -> None:
    """Set CUDA_VISIBLE_DEVICES if Slurm did not (``--gpu-bind=none`` of newer versions) and the
    driver shows more GPUs than this step was given: the others belong to another job."""
    given = given_gpus()
    if given is None or os.environ.get("CUDA_VISIBLE_DEVICES") or not shutil.which("nvidia-smi"):
        return
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SMI_S)
    if len(listed.stdout.splitlines()) > len(given):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(sorted(given, key=lambda g: (len(g), g)))


def set_gpu_defaults(trainer: TrainerSection) -> None:
    """Set variables that CUDA and torch's allocator read when a rank first uses its GPU, unless
    they are set already. Call it before torch is imported. It has not run on a GPU yet."""
    if trainer.tensor_parallel * trainer.context_parallel > 1:
        # Megatron starts a collective, then the matrix product that it overlaps with: with one work
        # queue they reach the GPU in that order
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # the same by its newer name
        # batches differ in size from step to step: this reserves less unused memory
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def own_device(local_rank: int, visible: int) -> int:
    """The index of this rank's GPU among the ``visible`` ones.

    A single visible GPU belongs to this task (Slurm's --gpus-per-task); otherwise the ranks of a
    machine share the list. Raises RuntimeError if there are more ranks than GPUs.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise RuntimeError(f"local rank {local_rank} has no GPU: only {visible} are visible here")
    return local_rank


def assert_own_devices(store: dist.Store, rank: int, world: int, device: str) -> None:
    """Raise RuntimeError if another rank computes on the same ``device`` (a name unique in the
    job).

    Every rank calls it. It uses the store, because nccl would hang if two ranks share a device.
    """
    store.set(f"aent/device/{rank}", device)
    for other in range(world):
        if other != rank and store.get(f"aent/device/{other}").decode() == device:
            raise RuntimeError(f"ranks {rank} and {other} were both given {device}")
