"""Checks of trainer and engines that share GPUs (``rollout.placement: colocated``)."""

from __future__ import annotations

from collections.abc import Iterator

from aent.recipe.schema import Recipe
from aent.runtime.environment import device_kind

COLOCATED = "rollout.placement=colocated"


def faults(recipe: Recipe, machine: bool) -> Iterator[str]:
    """One sentence per fault, each naming its field. ``machine``: see ``checks.recipe.check``."""
    rollout, trainer = recipe.rollout, recipe.trainer
    by_ipc = rollout.transfer_backend == "cuda_ipc"
    if by_ipc and not rollout.colocated:
        yield f"rollout.transfer_backend=cuda_ipc needs {COLOCATED}: it is for one GPU's processes"
    if by_ipc and trainer.tensor_parallel * trainer.pipeline_parallel > 1:
        yield (
            "rollout.transfer_backend=cuda_ipc needs trainer.tensor_parallel=1 and "
            "trainer.pipeline_parallel=1: an engine reads whole weights from the rank on its GPU"
        )
    if not rollout.colocated:
        return
    if rollout.urls:
        yield (
            f"rollout.urls has no meaning with {COLOCATED}: engines that were started elsewhere do "
            "not share the trainer's GPUs"
        )
    if rollout.max_staleness:
        yield (
            f"rollout.max_staleness={rollout.max_staleness} does not work with {COLOCATED}: the "
            "engines sleep while a step is trained on, so nothing is sampled ahead"
        )
    if rollout.spare_engines > 0:
        yield (
            f"rollout.min_engines={rollout.min_engines} does not work with {COLOCATED}: a lost "
            "engine cannot be started again on a GPU that the trainer uses"
        )
    if rollout.transfer_backend not in ("auto", "cuda_ipc"):
        yield (
            f"rollout.transfer_backend={rollout.transfer_backend} does not work with {COLOCATED}: "
            "weights pass through the node's memory, as NCCL refuses two processes on one GPU"
        )
    if recipe.trainer.optimizer.megatron.get("optimizer_cpu_offload"):
        yield (
            f"trainer.optimizer.megatron.optimizer_cpu_offload does not work with {COLOCATED}, "
            "which moves the optimizer to host memory and back itself"
        )
    if (machine and device_kind() == "cpu") or not (machine or recipe.cluster.gpus_per_node):
        yield (
            f"{COLOCATED} is for GPUs, and there is none: processes on a CPU share its memory "
            "anyway, and vLLM's engines on a CPU do not release theirs"
        )
