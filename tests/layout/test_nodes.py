"""The placement of ranks and engines on nodes, and jobs that are refused."""

import pytest

from aent.layout.nodes import Layout, gpus_used, idle_gpus, layout
from aent.recipe.load import load
from wording import assert_names, naming

TINY = "recipes/cpu/tiny.yaml"  # 4 ranks, 1 engine


def recipe(*overrides: str):
    return load(TINY, overrides)


def test_engines_lie_beside_the_ranks_or_on_nodes_of_their_own():
    assert layout(recipe(), 2, 8) == Layout(2, 2, 1, 1, 2)
    many = recipe("rollout.engines=3", "rollout.engine.tensor_parallel=2")
    assert layout(many, 2, 8) == Layout(2, 2, 2, 2, 2)
    assert layout(many, 1, 6, engine_nodes=1) == Layout(1, 4, 1, 3, 0)
    served = ("rollout.engines=0", "rollout.urls=[http://x:1]", "trainer.tensor_parallel=1")
    assert layout(recipe(*served), 2, 1).engine_nodes == 0
    assert layout(recipe(), 1, 0).ranks_per_node == 4  # a job without GPUs has no bound


def test_engines_lie_on_the_ranks_gpus_if_they_are_colocated():
    shared = ("rollout.placement=colocated", "rollout.engines=2")
    both = recipe(*shared, "rollout.engine.tensor_parallel=2")
    assert layout(both, 1, 4) == Layout(1, 4, 1, 2, 0)
    assert idle_gpus(both, 1, 4) is None
    assert [gpus_used(recipe(*more)) for more in ((), shared)] == [5, 4]
    assert gpus_used(recipe("rollout.placement=colocated", "rollout.engines=6")) == 6
    assert_names(idle_gpus(recipe(*shared), 1, 8), "4 of", 8, "rollout.engines=8")


@pytest.mark.parametrize(
    ("arguments", "overrides", "names"),
    [
        ((2, 8), ("rollout.placement=colocated",), ("rollout.placement=colocated", "one node")),
        ((1, 8, 1), ("rollout.placement=colocated",), ("rollout.placement=colocated", "one node")),
        (
            (1, 4),
            ("rollout.placement=colocated", "rollout.engines=5"),
            ("rollout.engine.tensor_parallel", "5 GPUs", 4),
        ),
        ((3, 8), (), (4, "3 nodes")),
        ((4, 8), (), ("trainer.tensor_parallel=2", "4 trainer ranks", "4 nodes", 1)),
        ((1, 8, 1, 1), ("rollout.engines=2",), ("rollout.engine.tensor_parallel", "2 GPUs", 1)),
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


@pytest.mark.parametrize(
    ("arguments", "overrides", "names"),
    [
        ((1, 5), (), None),
        ((1, 4, 1, 1), (), None),
        ((1, 0), (), None),
        ((1, 8), (), ("3 of", 8, "rollout.engines=4")),
        (
            (2, 8),
            (),
            ("11 of", 16, "trainer.data_parallel=3", "rollout.engines=12", "cluster.nodes=1"),
        ),
        ((1, 8, 1, 2), (), ("5 of", 10, "trainer.data_parallel=2", "rollout.engines=2")),
        ((1, 7), ("rollout.engine.tensor_parallel=3", "trainer.pipeline_parallel=1"), ("2 of", 7)),
    ],
)
def test_gpus_that_nothing_uses_are_told_with_what_would(arguments, overrides, names):
    told = idle_gpus(recipe(*overrides), *arguments)
    assert (told is None) == (names is None), told
    if told is not None:
        assert_names(told, *names)
