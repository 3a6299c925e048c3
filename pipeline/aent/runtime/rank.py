"""Which place in the job this process has: from torchrun's variables, or from Slurm's."""

from __future__ import annotations

import os

import torch.distributed as dist

# torchrun's variable -> what srun sets for each task
SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
}


def read_place() -> int:
    """Complete torchrun's variables from Slurm's where srun started this process; return the rank.

    The batch script sets MASTER_ADDR and MASTER_PORT. Raises RuntimeError naming what is missing.
    """
    if "RANK" not in os.environ:
        for name, source in SLURM.items():
            if source in os.environ:
                os.environ[name] = os.environ[source]
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"a trainer rank is started by aent train, torchrun or srun: {', '.join(missing)} "
            "not in its environment"
        )
    return int(os.environ["RANK"])


def own_device(local_rank: int, visible: int) -> int:
    """The number of this rank's GPU among the ``visible`` ones.

    One visible GPU is this task's own (Slurm's --gpus-per-task); else the ranks of a machine share
    the list. Raises RuntimeError where there are more ranks than GPUs.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise RuntimeError(f"local rank {local_rank} has no GPU: {visible} are visible here")
    return local_rank


def assert_own_devices(store: dist.Store, rank: int, world: int, device: str) -> None:
    """Raise RuntimeError if another rank computes on the same ``device`` (named for the whole job).

    Every rank calls it; through the store, for nccl would hang where it is not so.
    """
    store.set(f"aent/device/{rank}", device)
    for other in range(world):
        if other != rank and store.get(f"aent/device/{other}").decode() == device:
            raise RuntimeError(f"ranks {rank} and {other} were both given {device}")
