"""Where ranks and engines lie, and which jobs are refused."""

import pytest

from aent.layout.nodes import Layout, layout
from aent.recipe.load import load
from wording import naming

TINY = "recipes/cpu/tiny.yaml"  # 4 ranks, 1 engine


def recipe(*overrides: str):
    return load(TINY, overrides)


def test_engines_lie_beside_the_ranks_or_on_nodes_of_their_own():
    assert layout(recipe(), 2, 8) == Layout(2, 2, 1, 1, 2)
    many = recipe("rollout.engines=3", "rollout.engine.tensor_parallel=2")
    assert layout(many, 2, 8) == Layout(2, 2, 2, 2, 2)
    assert layout(many, 1, 6, engine_nodes=1) == Layout(1, 4, 1, 3, 0)
    assert layout(recipe("rollout.engines=0", "rollout.urls=[http://x:1]"), 4, 1).engine_nodes == 0
    assert layout(recipe(), 1, 0).ranks_per_node == 4  # a job without GPUs has no bound


@pytest.mark.parametrize(
    ("arguments", "overrides", "names"),
    [
        ((3, 8), (), (4, "3 nodes")),
        ((2, 2), (), ("rollout.engine.tensor_parallel", "3 GPUs", 2)),
        ((1, 3, 1), (), ("4 GPUs", 3)),
        ((2, 2, 1), ("rollout.engines=3",), ("rollout.engine.tensor_parallel", "3 GPUs", 2)),
        ((2, 2, 1), ("rollout.engines=0",), ("rollout.engines", 0)),
        ((2, 2, 3), ("rollout.engines=2",), ("3 nodes", "rollout.engines", 2)),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(arguments, overrides, names):
    with pytest.raises(ValueError, match=naming(*names)):
        layout(recipe(*overrides), *arguments)
