"""Whether a recipe's ranks and engines fit the memory of their GPUs: certainly not, or perhaps
not."""

from __future__ import annotations

from collections.abc import Iterator

from aent.estimate import card
from aent.estimate.memory import GIB
from aent.layout.nodes import gpus_used
from aent.models.facts import are_known
from aent.recipe.schema import Recipe
from aent.runtime import environment


def faults(recipe: Recipe, machine: bool) -> Iterator[str]:
    """One sentence for each part that cannot fit (``estimate.card.faults``), for a recipe without
    other faults."""
    if (found := _size(recipe, machine)) is not None:
        yield from card.faults(recipe, *found)


def doubts(recipe: Recipe, machine: bool) -> Iterator[str]:
    """One sentence for each part that may not fit, for a recipe without faults."""
    if (found := _size(recipe, machine)) is not None:
        yield from card.doubts(recipe, *found)


def _size(recipe: Recipe, machine: bool) -> tuple[int, str] | None:
    """(bytes of a GPU, the source of that number). The GPUs are those of this machine (its largest
    ones if not all are needed); without ``machine``, those of the recipe's job, by
    ``cluster.gpu_memory_gib``. None without GPUs, or if the model's sizes are not known."""
    if not are_known(recipe.model):
        return None
    if machine:
        size = environment.gpu_memory_bytes(gpus_used(recipe))
        return None if size is None else (size, "nvidia-smi")
    if not recipe.cluster.gpus_per_node:
        return None
    return int(recipe.cluster.gpu_memory_gib * GIB), "cluster.gpu_memory_gib"
