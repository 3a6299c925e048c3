"""Room on disk that a run's folder needs: checkpoints and the trained policy."""

from __future__ import annotations

from aent.models.facts import model_facts
from aent.recipe.schema import Recipe

GIB = 2**30
# of each parameter: weights and Adam's two moments; bfloat16 weights have float32 main ones too
CHECKPOINT = {"float32": 4 + 8, "bfloat16": 2 + 4 + 8}
POLICY = 4  # in 32 bits


def checkpoint_bytes(recipe: Recipe) -> int:
    """Of one checkpoint."""
    return CHECKPOINT[recipe.model.dtype] * model_facts(recipe.model).parameters


def disk_bytes(recipe: Recipe, checkpoints_here: int = 0) -> int:
    """What has to be free: for ``checkpoint.keep`` checkpoints and one that is being written before
    the oldest goes, less those that a resumed run has there already; and for the policy, twice,
    while it replaces an older one.

    Raises as ``models.facts.model_facts``.
    """
    left = max(1, recipe.checkpoint.keep + 1 - checkpoints_here)
    policies = 2 * POLICY * model_facts(recipe.model).parameters
    return left * checkpoint_bytes(recipe) + policies


def describe_disk(recipe: Recipe) -> str:
    """A line for a person."""
    return (
        f"disk: {disk_bytes(recipe) / GIB:.1f} GiB in the run's folder "
        f"({recipe.checkpoint.keep} + 1 checkpoints of {checkpoint_bytes(recipe) / GIB:.2f} GiB, "
        "and the policy)"
    )
