"""How a recipe's ranks and engines lie on the nodes of a Slurm job."""

from __future__ import annotations

from dataclasses import dataclass

from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe


@dataclass(frozen=True)
class Layout:
    """Tasks of each node. Engines take the GPUs after the ranks', or nodes of their own."""

    nodes: int  # that trainer ranks are on
    ranks_per_node: int
    engine_nodes: int  # that engines are on: the same nodes, or the second group's
    engines_per_node: int
    first_engine_gpu: int  # of a node with engines


def layout(recipe: Recipe, nodes: int, gpus_per_node: int, engine_nodes: int = 0) -> Layout:
    """Deal the recipe's ranks and engines out to nodes.

    Args:
        nodes: of the job, or of the trainers' group of a heterogeneous one.
        gpus_per_node: 0 where the job has none.
        engine_nodes: of the engines' group; 0: engines share the trainers' nodes.

    Raises ValueError, with the reason, where they do not fit.
    """
    ranks, rollout = ParallelLayout.of(recipe.trainer).num_ranks, recipe.rollout
    if ranks % nodes:
        raise ValueError(f"{ranks} trainer ranks cannot be dealt out evenly to {nodes} nodes")
    ranks_per_node = ranks // nodes
    if engine_nodes and not rollout.engines:
        raise ValueError("a second group for engines needs rollout.engines above 0")
    if engine_nodes > rollout.engines:
        raise ValueError(
            f"{engine_nodes} nodes for rollout.engines={rollout.engines}: some would have no engine"
        )
    places = min(engine_nodes or nodes, rollout.engines)
    engines_per_node = -(-rollout.engines // places) if places else 0
    engine_gpus = engines_per_node * rollout.engine.tensor_parallel
    first = 0 if engine_nodes else ranks_per_node
    if gpus_per_node:
        what = f"{ranks_per_node} trainer ranks"
        engines = f"{engines_per_node} engine(s) of rollout.engine.tensor_parallel="
        engines += f"{rollout.engine.tensor_parallel}"
        if not engine_nodes and engine_gpus:
            _check(ranks_per_node + engine_gpus, gpus_per_node, f"{what} and {engines}")
        else:
            _check(ranks_per_node, gpus_per_node, what)
            _check(engine_gpus, gpus_per_node, engines)
    return Layout(nodes, ranks_per_node, places, engines_per_node, first)


def _check(needed: int, gpus: int, what: str) -> None:
    if needed > gpus:
        raise ValueError(f"{what} need {needed} GPUs on a node, and a node has {gpus}")
