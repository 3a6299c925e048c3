"""Whether a recipe's ranks and engines fit the memory of their GPUs: what cannot, and what may
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
    """One sentence per fault, as ``checks.recipe``, of a recipe that has no other: what cannot fit
    (``estimate.card.faults``)."""
    if (found := _size(recipe, machine)) is not None:
        yield from card.faults(recipe, *found)


def doubts(recipe: Recipe, machine: bool) -> Iterator[str]:
    """One sentence for what may not fit, of a recipe without faults."""
    if (found := _size(recipe, machine)) is not None:
        yield from card.doubts(recipe, *found)


def _size(recipe: Recipe, machine: bool) -> tuple[int, str] | None:
    """Bytes of a GPU, and who says so. The GPUs are those of this machine, its largest where not
    all are needed; without ``machine`` those of the recipe's job, by ``cluster.gpu_memory_gib``.
    None without GPUs, or if the model's sizes are not known."""
    if not are_known(recipe.model):
        return None
    if machine:
        size = environment.gpu_memory_bytes(gpus_used(recipe))
        return None if size is None else (size, "nvidia-smi")
    if not recipe.cluster.gpus_per_node:
        return None
    return int(recipe.cluster.gpu_memory_gib * GIB), "cluster.gpu_memory_gib"
