"""Disk space."""

import pytest

from aent.estimate.disk import checkpoint_bytes, describe_disk, disk_bytes
from aent.models.facts import model_facts
from aent.recipe.load import load
from wording import assert_names

TINY = "recipes/cpu/tiny.yaml"


@pytest.mark.parametrize(
    ("dtype", "distributed", "each", "policy"),
    [
        ("float32", False, 12, 4),
        ("bfloat16", False, 14, 2),
        ("float32", True, 16, 4),
        ("bfloat16", True, 14, 2),
    ],
)
def test_checkpoints_and_the_policy_are_counted(dtype, distributed, each, policy):
    sharded = f"trainer.optimizer.distributed={str(distributed).lower()}"
    recipe = load(TINY, [f"model.dtype={dtype}", "checkpoint.keep=3", sharded])
    parameters = model_facts(recipe.model).parameters
    assert checkpoint_bytes(recipe) == each * parameters
    assert disk_bytes(recipe) == (4 * each + 2 * policy) * parameters
    assert disk_bytes(recipe, checkpoints_here=3) == (each + 2 * policy) * parameters
    assert disk_bytes(recipe, checkpoints_here=9) == (each + 2 * policy) * parameters


def test_a_recipe_of_32_billion_parameters_says_what_it_writes():
    assert_names(describe_disk(load("recipes/scale/32b.yaml")), "GiB", "checkpoints")
