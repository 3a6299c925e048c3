"""Room on disk that a run's folder needs: checkpoints and the trained policy."""

from __future__ import annotations

from aent.estimate.state import element_bytes
from aent.models.facts import model_facts
from aent.recipe.schema import Recipe

GIB = 2**30
MOMENTS = 8  # of each parameter: Adam's two


def checkpoint_bytes(recipe: Recipe) -> int:
    """Of one checkpoint: weights, Adam's moments and, for bfloat16, main weights in float32; a
    distributed optimizer has the latter whatever the weights are."""
    weights = element_bytes(recipe)
    main = 4 if weights < 4 or recipe.trainer.optimizer.distributed else 0
    return (weights + main + MOMENTS) * model_facts(recipe.model).parameters


def disk_bytes(recipe: Recipe, checkpoints_here: int = 0) -> int:
    """What has to be free: for ``checkpoint.keep`` checkpoints and one that is being written before
    the oldest goes, less those that a resumed run has there already; and for the policy, twice,
    while it replaces an older one.

    Raises as ``models.facts.model_facts``.
    """
    left = max(1, recipe.checkpoint.keep + 1 - checkpoints_here)
    policies = 2 * element_bytes(recipe) * model_facts(recipe.model).parameters
    return left * checkpoint_bytes(recipe) + policies


def describe_disk(recipe: Recipe) -> str:
    """A line for a person."""
    return (
        f"disk: {disk_bytes(recipe) / GIB:.1f} GiB in the run's folder "
        f"({recipe.checkpoint.keep} + 1 checkpoints of {checkpoint_bytes(recipe) / GIB:.2f} GiB, "
        "and the policy)"
    )
