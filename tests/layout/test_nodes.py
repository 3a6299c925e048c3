"""Where ranks and engines lie, and which jobs are refused."""

import pytest

from aent.layout.nodes import Layout, layout
from aent.recipe.load import load

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
    ("arguments", "overrides", "reason"),
    [
        ((3, 8), (), "4 trainer ranks cannot be dealt out evenly to 3 nodes"),
        ((2, 2), (), r"2 trainer ranks and 1 engine\(s\) .* need 3 GPUs on a node, and .* has 2"),
        ((1, 3, 1), (), "4 trainer ranks need 4 GPUs on a node, and a node has 3"),
        ((2, 2, 1), ("rollout.engines=3",), r"3 engine\(s\) .*=1 need 3 GPUs"),
        ((2, 2, 1), ("rollout.engines=0",), r"needs rollout\.engines above 0"),
        ((2, 2, 3), ("rollout.engines=2",), r"3 nodes for rollout\.engines=2: some would have no"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(arguments, overrides, reason):
    with pytest.raises(ValueError, match=reason):
        layout(recipe(*overrides), *arguments)
