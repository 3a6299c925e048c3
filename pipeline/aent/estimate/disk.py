"""Disk space that a run's folder needs: checkpoints and the trained policy."""

from __future__ import annotations

from aent.estimate.state import element_bytes
from aent.models.facts import model_facts
from aent.recipe.schema import Recipe

GIB = 2**30
MOMENTS = 8  # bytes per parameter: Adam's two moments


def checkpoint_bytes(recipe: Recipe) -> int:
    """Of one checkpoint: weights, Adam's moments and, for bfloat16, main weights in float32, which
    a distributed optimizer has for any type of weights."""
    weights = element_bytes(recipe)
    main = 4 if weights < 4 or recipe.trainer.optimizer.distributed else 0
    return (weights + main + MOMENTS) * model_facts(recipe.model).parameters


def disk_bytes(recipe: Recipe, checkpoints_here: int = 0) -> int:
    """Disk space that must be free: for ``checkpoint.keep`` checkpoints and one that is written
    before the oldest is removed, less those that a resumed run already has; and for the policy,
    twice, while it replaces an older one.

    Raises as ``models.facts.model_facts``.
    """
    left = max(1, recipe.checkpoint.keep + 1 - checkpoints_here)
    policies = 2 * element_bytes(recipe) * model_facts(recipe.model).parameters
    return left * checkpoint_bytes(recipe) + policies


def describe_disk(recipe: Recipe) -> str:
    """A line for people to read."""
    return (
        f"disk: {disk_bytes(recipe) / GIB:.1f} GiB in the run's folder "
        f"({recipe.checkpoint.keep} + 1 checkpoints of {checkpoint_bytes(recipe) / GIB:.2f} GiB, "
        "and the policy)"
    )
