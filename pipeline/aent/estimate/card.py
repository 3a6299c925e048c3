"""Whether a recipe's ranks and engines fit their cards, and what a card holds besides tensors.

The assumptions are numbers that could not be measured where this was written (no GPU): what is
commonly seen on cards of 80 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from aent.estimate.memory import COUNTED, GIB, MemoryEstimate, RankMemory, estimate
from aent.estimate.state import element_bytes, largest_tensor
from aent.layout.parallel import ParallelLayout
from aent.models.facts import model_facts
from aent.recipe.schema import Recipe

CONTEXT_BYTES = int(0.6 * GIB)  # CUDA's context with the kernels of torch and Transformer Engine
NCCL_BYTES = int(0.3 * GIB)  # of each group of ranks that a rank communicates in
WORKSPACE_BYTES = int(0.3 * GIB)  # of cuBLAS and of the attention
FRAGMENTED = 0.05  # of what torch has allocated, lost between its blocks
# of one of vLLM's workers: context, NCCL, CUDA graphs, activations; also while it sleeps
ENGINE_BYTES = int(3.0 * GIB)
PROBE_BYTES = int(0.5 * GIB)  # of a rank that scores the probe's few tokens


@dataclass(frozen=True)
class Card:
    """Bytes on the card of one trainer rank."""

    allocated: int
    context: int
    nccl: int
    workspaces: int
    fragmentation: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def card(memory: RankMemory, layout: ParallelLayout) -> Card:
    """What a rank takes of its card, assumptions among it."""
    sizes = (layout.tensor, layout.context, layout.data, layout.pipeline)
    groups = sum(size > 1 for size in sizes) + (layout.num_ranks > 1)
    return Card(
        allocated=memory.allocated,
        context=CONTEXT_BYTES,
        nccl=groups * NCCL_BYTES,
        workspaces=WORKSPACE_BYTES,
        fragmentation=int(FRAGMENTED * memory.allocated),
    )


def resting(memory: RankMemory, layout: ParallelLayout) -> Card:
    """The memory that a rank keeps on a card that it shares with an engine, during the engine's
    turn: weights, and one whole tensor on its way to the engines."""
    kept = memory.weights + memory.export + PROBE_BYTES
    full = card(memory, layout)
    return replace(full, allocated=kept, fragmentation=int(FRAGMENTED * kept))


def most_resting(estimate: MemoryEstimate, layout: ParallelLayout) -> int:
    """The largest ``resting`` of all ranks, bytes."""
    return max(resting(rank, layout).total for rank in estimate.per_rank)


@dataclass(frozen=True)
class EngineCard:
    """Bytes on each card of one engine."""

    usable: int  # rollout.engine.gpu_memory_utilization of the card
    weights: int
    transfer: int  # two buckets of new weights, or the largest tensor from the node's memory
    worker: int  # assumed
    sequence: int  # key-value cache of one sequence of the longest kind

    @property
    def cache(self) -> int:
        """Bytes left for the key-value cache; below 0 if the weights do not fit."""
        return self.usable - self.weights - self.transfer - self.worker

    @property
    def holds_a_sequence(self) -> bool:
        """Whether the weights and the cache of one sequence fit; the rest is left out."""
        return self.weights + self.sequence <= self.usable

    @property
    def sequences(self) -> int:
        """How many sequences of the longest kind the cache holds."""
        return max(0, self.cache // self.sequence)


def engine_card(recipe: Recipe, size: int) -> EngineCard:
    """The memory of an engine on cards of ``size`` bytes. If there are fewer key-value heads than
    cards, each card has one."""
    facts, rollout = model_facts(recipe.model), recipe.rollout
    cards, element = rollout.engine.tensor_parallel, element_bytes(recipe)
    heads = -(-facts.kv_groups // cards)
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    transfer = 2 * rollout.transfer_bucket_mib * 2**20
    if rollout.colocated:
        transfer = largest_tensor(facts) * element
    return EngineCard(
        usable=int(rollout.engine.gpu_memory_utilization * size),
        weights=facts.parameters * element // cards,
        transfer=transfer,
        worker=ENGINE_BYTES,
        sequence=2 * facts.layers * heads * facts.head_dim * element * longest,
    )


def faults(recipe: Recipe, size: int, says: str = "nvidia-smi") -> Iterator[str]:
    """One sentence for a trainer whose counted parts (``RankMemory.counted``) alone do not fit
    cards of ``size`` bytes; the same for an engine, by its weights and the cache of one sequence,
    and for an engine on the ranks' cards, beside everything that a rank keeps there.

    recipe: checked, with a model whose sizes are known. says: the source of the size.
    """
    memory, layout = estimate(recipe), ParallelLayout.of(recipe.trainer)
    rank, fullest = max(enumerate(memory.per_rank), key=lambda each: each[1].counted)
    has = f"{size / GIB:.1f} GiB by {says}"
    if fullest.counted > size:
        yield (
            f"memory: rank {rank} ({layout}) needs at least {fullest.counted / GIB:.1f} GiB of a "
            f"GPU that has {has}: {_sizes(fullest, COUNTED)}; "
            "docs/scaling.md says what makes each smaller"
        )
    if not recipe.rollout.engines:
        return
    engine = engine_card(recipe, size)
    if not engine.holds_a_sequence:
        yield (
            f"rollout.engine.tensor_parallel={recipe.rollout.engine.tensor_parallel}: of each GPU "
            f"({has}) an engine may use {engine.usable / GIB:.1f}, and weights "
            f"({engine.weights / GIB:.1f}) and the key-value cache of one sequence "
            f"({engine.sequence / GIB:.1f}) do not fit"
        )
    if not recipe.rollout.colocated:
        return
    rest = most_resting(memory, layout)
    if engine.usable + rest > size:
        most = max(0, (size - rest) * 100 // size) / 100
        yield (
            "rollout.engine.gpu_memory_utilization="
            f"{recipe.rollout.engine.gpu_memory_utilization:g}: an engine takes "
            f"{engine.usable / GIB:.1f} GiB of a GPU that has {has}, and "
            f"a rank keeps about {rest / GIB:.1f} GiB there while it samples "
            f"(rollout.placement=colocated): at most {most:.2f} fits"
        )


def doubts(recipe: Recipe, size: int, says: str = "nvidia-smi") -> Iterator[str]:
    """One sentence for a trainer without ``faults`` that does not fit if the assumptions, and what
    was read from the code, are right; the same for engines."""
    memory, layout = estimate(recipe), ParallelLayout.of(recipe.trainer)
    rank = memory.fullest
    need = card(memory.per_rank[rank], layout)
    asleep = ENGINE_BYTES * recipe.rollout.colocated
    has = f"{size / GIB:.1f} GiB by {says}"
    if need.total + asleep > size:
        beside = f" beside a sleeping engine's {asleep / GIB:.1f}" if asleep else ""
        yield (
            f"memory: rank {rank} ({layout}) may run out of memory: it needs about "
            f"{need.total / GIB:.1f} GiB{beside} of a GPU that has {has}: "
            f"{_parts(memory.per_rank[rank], need)}"
        )
    if not recipe.rollout.engines:
        return
    engine = engine_card(recipe, size)
    if engine.sequences < 1:
        yield (
            f"rollout.engine.tensor_parallel={recipe.rollout.engine.tensor_parallel}: an engine "
            f"may use {engine.usable / GIB:.1f} GiB of each GPU ({has}), and perhaps has no room "
            f"for one sequence ({engine.sequence / GIB:.1f}) beside weights "
            f"({engine.weights / GIB:.1f}), their transfer ({engine.transfer / GIB:.1f}) and "
            f"what is assumed for its process ({engine.worker / GIB:.1f})"
        )


def describe(recipe: Recipe, memory: MemoryEstimate, size: int) -> str:
    """Lines for a person: the fullest card of the trainer, an engine's, host memory."""
    layout, rank = ParallelLayout.of(recipe.trainer), memory.fullest
    need = card(memory.per_rank[rank], layout)
    lines = [
        f"on GPUs: rank {rank}, the fullest, needs {need.total / GIB:.1f} of {size / GIB:.1f} GiB "
        f"({_parts(memory.per_rank[rank], need)})"
    ]
    if recipe.rollout.engines:
        engine = engine_card(recipe, size)
        lines.append(
            f"an engine's GPU: {engine.usable / GIB:.1f} GiB may be used: weights "
            f"{engine.weights / GIB:.1f}, transfer {engine.transfer / GIB:.1f}, assumed for the "
            f"process {engine.worker / GIB:.1f}; the key-value cache's {engine.cache / GIB:.1f} "
            f"hold {engine.sequences} of the longest sequences"
        )
    if recipe.rollout.colocated:
        rest = most_resting(memory, layout)
        lines.append(
            f"they share a GPU: {(need.total + ENGINE_BYTES) / GIB:.1f} GiB while the trainer "
            f"works, {(engine.usable + rest) / GIB:.1f} while the engine does (assumed: "
            f"{ENGINE_BYTES / GIB:.1f} of an engine that sleeps, {PROBE_BYTES / GIB:.1f} of the "
            "probe)"
        )
    lines.append(
        f"host memory beside GPUs: {max(r.host for r in memory.per_rank) / GIB:.1f} GiB of a rank, "
        f"{node_host_bytes(recipe, memory) / GIB:.1f} of a node with {recipe.cluster.gpus_per_node}"
    )
    return "\n".join(lines)


def node_host_bytes(recipe: Recipe, memory: MemoryEstimate) -> int:
    """Host memory of the trainer's ranks on the fullest node of the recipe's job."""
    size, ranks = recipe.cluster.gpus_per_node, memory.per_rank
    firsts = range(0, len(ranks), size)
    return max(sum(rank.host for rank in ranks[first : first + size]) for first in firsts)


def _parts(memory: RankMemory, need: Card) -> str:
    """What fills a card, largest first, in GiB; then what is assumed."""
    names: tuple[str, ...] = (*COUNTED, "logits", "temporaries")
    if memory.allocated > sum(getattr(memory, name) for name in names):
        later = max(("export", "swap", "gathering"), key=lambda name: getattr(memory, name))
        names = ("weights", "gradients", "optimizer", later)
    assumed = [f.name for f in fields(need) if f.name != "allocated"]
    return f"{_sizes(memory, names)}; assumed: " + ", ".join(
        f"{name} {getattr(need, name) / GIB:.1f}" for name in assumed
    )


def _sizes(memory: RankMemory, names: tuple[str, ...]) -> str:
    """These lines, largest first, in GiB."""
    sizes = sorted(((getattr(memory, name), name) for name in names), reverse=True)
    return ", ".join(f"{name} {size / GIB:.1f}" for size, name in sizes)
