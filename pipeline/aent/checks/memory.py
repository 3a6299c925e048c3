"""Whether a recipe's ranks and engines fit the memory of their GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from aent.estimate import card
from aent.layout.nodes import gpus_used
from aent.models.facts import are_known
from aent.recipe.schema import Recipe
from aent.runtime import environment

GIB = 2**30


def faults(recipe: Recipe, machine: bool) -> Iterator[str]:
    """One sentence per fault, as ``checks.recipe``, of a recipe that has no other.

    The GPUs are those of this machine, its largest where not all are needed; without ``machine``
    those of the recipe's job, by ``cluster.gpu_memory_gib``.
    """
    if not are_known(recipe.model):
        return
    if machine:
        size = environment.gpu_memory_bytes(gpus_used(recipe))
        if size is not None:
            yield from card.faults(recipe, size)
    elif recipe.cluster.gpus_per_node:
        size = int(recipe.cluster.gpu_memory_gib * GIB)
        yield from card.faults(recipe, size, "cluster.gpu_memory_gib")
