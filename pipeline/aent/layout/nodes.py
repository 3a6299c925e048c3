"""How a recipe's ranks and engines lie on the GPUs of a machine and on the nodes of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe


@dataclass(frozen=True)
class Layout:
    """Tasks of each node. Engines take the GPUs after the ranks', the same ones from the first on
    (``rollout.placement: colocated``), or nodes of their own."""

    nodes: int  # with trainer ranks
    ranks_per_node: int
    engine_nodes: int  # with engines: the same nodes, or those of the second group
    engines_per_node: int
    first_engine_gpu: int  # of a node with engines


def gpus_used(recipe: Recipe) -> int:
    """How many GPUs ranks and engines take together."""
    ranks, rollout = ParallelLayout.of(recipe.trainer).num_ranks, recipe.rollout
    engines = rollout.engines * rollout.engine.tensor_parallel
    return max(ranks, engines) if rollout.colocated else ranks + engines


def first_engine_gpu(recipe: Recipe, ranks: int) -> int:
    """The first GPU of the engines on a machine that they share with so many trainer ranks."""
    return 0 if recipe.rollout.colocated else ranks


def layout(
    recipe: Recipe,
    nodes: int,
    gpus_per_node: int,
    engine_nodes: int = 0,
    engine_gpus_per_node: int | None = None,
) -> Layout:
    """Distribute the recipe's ranks and engines over nodes.

    Args:
        nodes: of the job, or of the trainers' group of a heterogeneous job.
        gpus_per_node: 0 if the job has none.
        engine_nodes: of the engines' group; 0: engines share the trainers' nodes.
        engine_gpus_per_node: of the engines' group; None: as many as the trainers' nodes have.

    Raises ValueError, with the reason, if they do not fit.
    """
    ranks, rollout = ParallelLayout.of(recipe.trainer).num_ranks, recipe.rollout
    if ranks % nodes:
        raise ValueError(f"{ranks} trainer ranks cannot be divided evenly among {nodes} nodes")
    ranks_per_node = ranks // nodes
    if ranks_per_node % recipe.trainer.tensor_parallel:
        raise ValueError(
            f"trainer.tensor_parallel={recipe.trainer.tensor_parallel} would span several nodes: "
            f"{ranks} trainer ranks on {nodes} nodes are {ranks_per_node} on each"
        )
    if engine_nodes and not rollout.engines:
        raise ValueError("a second group for engines needs rollout.engines above 0")
    if engine_nodes > rollout.engines:
        raise ValueError(
            f"{engine_nodes} nodes for rollout.engines={rollout.engines}: some would have no engine"
        )
    if rollout.colocated and (nodes > 1 or engine_nodes):
        raise ValueError(
            "rollout.placement=colocated is for one node, whose memory new weights pass through, "
            f"and this job has {nodes + engine_nodes}"
        )
    places = min(engine_nodes or nodes, rollout.engines)
    engines_per_node = -(-rollout.engines // places) if places else 0
    engine_gpus = engines_per_node * rollout.engine.tensor_parallel
    first = 0 if engine_nodes else first_engine_gpu(recipe, ranks_per_node)
    engine_gpus_per_node = _engine_gpus(gpus_per_node, engine_nodes, engine_gpus_per_node)
    if gpus_per_node or engine_gpus_per_node:
        what = f"{ranks_per_node} trainer ranks"
        engines = f"{engines_per_node} engine(s) of rollout.engine.tensor_parallel="
        engines += f"{rollout.engine.tensor_parallel}"
        if not engine_nodes and engine_gpus and not rollout.colocated:
            _check(ranks_per_node + engine_gpus, gpus_per_node, f"{what} and {engines}")
        else:
            _check(ranks_per_node, gpus_per_node, what)
            _check(engine_gpus, engine_gpus_per_node, engines)
    return Layout(nodes, ranks_per_node, places, engines_per_node, first)


def idle_gpus(
    recipe: Recipe,
    nodes: int,
    gpus_per_node: int,
    engine_nodes: int = 0,
    engine_gpus_per_node: int | None = None,
) -> str | None:
    """How many of a job's GPUs are used by neither ranks nor engines, and which change would use
    more; None if all are used. Arguments as for ``layout``, which must accept them."""
    others = (gpus_per_node, engine_nodes, engine_gpus_per_node)
    idle = _idle(recipe, nodes, *others)
    if idle <= 0:
        return None
    every = nodes * gpus_per_node + engine_nodes * _engine_gpus(*others)
    ways: dict[str, str] = {}  # the best of each kind comes first
    for kind, number, other, on_nodes in _other_ways(recipe, nodes, every):
        try:
            layout(other, on_nodes, *others)
        except ValueError:
            continue
        if _idle(other, on_nodes, *others) < idle:
            ways.setdefault(kind, f"{kind}={number}")
    told = f"{idle} of the job's {every} GPUs are unused"
    return told + (f"; {' or '.join(ways.values())} would leave fewer idle" if ways else "")


def _other_ways(recipe: Recipe, nodes: int, gpus: int) -> Iterator[tuple[str, int, Recipe, int]]:
    """(the field to change, its new value, the changed recipe, the nodes of its ranks)."""
    trainer, rollout = recipe.trainer, recipe.rollout
    ranks = ParallelLayout.of(trainer)
    size = ranks.num_ranks // ranks.data  # of one replica
    for replicas in range(gpus // size, ranks.data, -1):
        changed = trainer.model_copy(update={"data_parallel": replicas})
        other = recipe.model_copy(update={"trainer": changed})
        yield "trainer.data_parallel", replicas, other, nodes
    for engines in range(gpus // rollout.engine.tensor_parallel, rollout.engines, -1):
        if rollout.engines:
            more = rollout.model_copy(update={"engines": engines})
            other = recipe.model_copy(update={"rollout": more})
            yield "rollout.engines", engines, other, nodes
    for fewer in range(1, nodes):
        yield "cluster.nodes", fewer, recipe, fewer


def _idle(recipe: Recipe, nodes: int, gpus: int, engine_nodes: int, engine_gpus: int | None) -> int:
    every = nodes * gpus + engine_nodes * _engine_gpus(gpus, engine_nodes, engine_gpus)
    return every - gpus_used(recipe)


def _engine_gpus(gpus: int, engine_nodes: int, engine_gpus: int | None) -> int:
    """GPUs of a node with engines."""
    return gpus if not engine_nodes or engine_gpus is None else engine_gpus


def _check(needed: int, gpus: int, what: str) -> None:
    if needed > gpus:
        raise ValueError(f"{what} need {needed} GPUs on a node, and a node has {gpus}")
