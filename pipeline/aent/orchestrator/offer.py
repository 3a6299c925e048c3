"""Memory with the policy's weights that engines on this machine may read, if it is possible."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from aent.recipe.schema import Recipe
from aent.runtime import distributed
from aent.trainer.trainer import Trainer
from aent.weights import cuda_ipc
from aent.weights.manifest import TensorSpec
from aent.weights.memory import WeightMemory
from aent.weights.memory_layout import Address


@dataclass(frozen=True)
class Offer:
    """Memory for the policy's weights, which engines on this machine may read."""

    # of this rank's pipeline stage; None on ranks that collect no weights
    own: WeightMemory | None
    # of all stages, of all ranks if it is on GPUs; empty: weights must go over the network
    addresses: list[Address]
    why_not: str = ""

    @staticmethod
    def of(recipe: Recipe, trainer: Trainer) -> Offer:
        """Collective. On CPUs, and on GPUs that the engines share, unless the recipe says that
        weights go over the network."""
        near = distributed.device().type == "cpu" or recipe.rollout.colocated
        backend = recipe.rollout.transfer_backend
        if not near or backend not in ("auto", "cuda_ipc"):
            return Offer(None, [])
        gpu = cuda_ipc.uuid() if backend == "cuda_ipc" else ""
        planned = [
            (name, TensorSpec(shape, recipe.model.dtype))
            for name, shape in trainer.exporter.planned(copies=gpu != "")
        ]
        own: WeightMemory | None = None
        mine: Address | str | None = None
        try:
            if planned:
                own = WeightMemory.make(planned, gpu)
                mine = own.address
        except OSError as error:
            mine = f"a trainer rank has no memory to share: {error}"
        everyones: list[Address | str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, mine, group=distributed.control_group())
        reasons = [each for each in everyones if isinstance(each, str)]
        offer = Offer(own, [each for each in everyones if isinstance(each, Address)])
        return offer.withdrawn(reasons[0]) if reasons else offer

    def withdrawn(self, why: str) -> Offer:
        """Without it."""
        if self.own is not None:
            self.own.close()
        return Offer(None, [], why)
