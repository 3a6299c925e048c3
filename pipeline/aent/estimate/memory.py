"""Memory that a run needs, per trainer rank and engine, before it starts.

Upper bounds from formulas, with the responses that entropy controls may ask for besides the
recipe's. P is the parameter count of a rank, in its own shard; a test measures the first six
lines on tiny models (``tests/estimate/test_measured.py``).

=============  ==================================================================================
weights        P x 4 (float32) or P x 2 (bfloat16)
gradients      P x 4: Megatron's gradient buffer, float32 in both cases
optimizer      Adam's two moments P x 8; bfloat16 adds float32 main weights P x 4; a distributed
               optimizer divides both by the data-parallel and context-parallel sizes
activations    what autograd keeps, of every micro-batch in flight (``estimate.activations``)
logits         of response tokens, and the hidden states they are made of (``estimate.head``)
temporaries    the largest tensors of one layer's backward, gathered ones among them
export         the largest whole tensor and, with tensor parallelism, the parts that it is gathered
               from; on rank 0 two transfer buckets; with ``rollout.transfer_backend: cuda_ipc``
               instead of these a copy of the weights
swap           the policy, while the frozen reference is in its place
gathering      the optimizer's state on its way into a checkpoint, on a card
=============  ==================================================================================

Always in host memory: the libraries (process), a frozen reference, an offloaded optimizer, and a
checkpoint that is saved or read. Without a card, each stage's first rank has the stage's tensors in
shared memory for engines to read (shared). The same holds with engines on the trainer's cards
(``rollout.placement: colocated``), and the optimizer is in pinned memory while they sample
(parked). On a card, training, export, swap and gathering happen one after the other, so only the
largest of them counts (``RankMemory.allocated``); the rest of a card's use is assumed
(``estimate.card``). Without a card everything is host memory, and all lines count.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from aent.estimate import activations, head
from aent.estimate import state as states
from aent.estimate.batch import micro_batch
from aent.layout.parallel import ParallelLayout
from aent.models.decoder import ModelFacts
from aent.models.facts import model_facts
from aent.recipe.schema import Recipe
from aent.runtime.environment import torch_is_for_gpus

GIB = 2**30
COUNTED = ("weights", "gradients", "optimizer", "activations")  # held together, as tests count
# resident memory of a process without what the model costs, measured on a CPU build: PROCESS for a
# trainer rank (torch, Megatron, transformers, NeMo), RANK_ZERO for what rank 0 has besides (clients
# of the engines, judges, MLflow, figures), ENGINE for one vLLM server with its engine and worker,
# without weights and key-value cache; GPU_BUILD for what a rank has more with torch's default build
# (measured without a GPU, with Megatron 0.19)
PROCESS_BYTES = int(0.48 * GIB)
RANK_ZERO_BYTES = int(0.23 * GIB)
GPU_BUILD_BYTES = int(0.31 * GIB)
ENGINE_BYTES = int(2.0 * GIB)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one trainer rank: on its device, then in host memory."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    temporaries: int
    export: int
    swap: int
    gathering: int
    reference: int
    offloaded: int
    checkpoint: int
    shared: int
    parked: int
    process: int

    @property
    def counted(self) -> int:
        """What a card must have at least, without assumptions."""
        return sum(getattr(self, name) for name in COUNTED)

    @property
    def allocated(self) -> int:
        """What torch allocates on a card at most."""
        held = self.weights + self.gradients + self.optimizer
        training = self.activations + self.logits + self.temporaries
        return held + max(training, self.export, self.swap, self.gathering)

    @property
    def host(self) -> int:
        """Host memory if a card computes."""
        return self.reference + self.offloaded + self.checkpoint + self.parked + self.process

    @property
    def total(self) -> int:
        """Host memory without a card, where nothing is gathered through one."""
        return sum(getattr(self, f.name) for f in fields(self)) - self.gathering


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one rollout engine, all its tensor-parallel workers together."""

    weights: int
    kv_cache: int  # on a CPU
    process: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.process


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per trainer rank, in rank order, and per engine started on this machine."""

    per_rank: tuple[RankMemory, ...]
    engines: tuple[EngineMemory, ...]

    @property
    def total_host_bytes(self) -> int:
        """Everything together: what one machine without a GPU must have."""
        return sum(r.total for r in self.per_rank) + sum(e.total for e in self.engines)

    @property
    def fullest(self) -> int:
        """The rank that needs most of its card."""
        return max(range(len(self.per_rank)), key=lambda rank: self.per_rank[rank].allocated)

    def __str__(self) -> str:
        """A table, ranks that are alike and follow one another in one line, without columns of
        zeros; then the engines."""
        names = [f.name for f in fields(RankMemory)]
        names = [n for n in names if any(getattr(rank, n) for rank in self.per_rank)]
        rows = [["GiB", *names, "on a card", "on a CPU"]]
        for said, memory in self._alike():
            values = [*(getattr(memory, name) for name in names), memory.allocated, memory.total]
            rows.append([said, *(f"{v / GIB:.2f}" for v in values)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in rows]
        for index, engine in enumerate(self.engines):
            lines.append(
                f"engine {index}: {engine.total / GIB:.2f} GiB (weights "
                f"{engine.weights / GIB:.2f}, key-value cache {engine.kv_cache / GIB:.2f}, "
                f"process {engine.process / GIB:.2f})"
            )
        lines.append(f"together: {self.total_host_bytes / GIB:.2f} GiB on one machine without GPUs")
        return "\n".join(lines)

    def _alike(self) -> list[tuple[str, RankMemory]]:
        runs: list[list[int]] = []
        for rank, memory in enumerate(self.per_rank):
            if runs and self.per_rank[runs[-1][0]] == memory:
                runs[-1].append(rank)
            else:
                runs.append([rank])
        return [
            (f"ranks {r[0]}-{r[-1]}" if len(r) > 1 else f"rank {r[0]}", self.per_rank[r[0]])
            for r in runs
        ]


def estimate(recipe: Recipe) -> MemoryEstimate:
    """The memory a checked recipe needs; ValueError as ``model_facts`` for an unreadable model."""
    facts = model_facts(recipe.model)
    rollout, layout = recipe.rollout, ParallelLayout.of(recipe.trainer)
    element = states.element_bytes(recipe)
    engine = EngineMemory(
        weights=facts.parameters * element,
        kv_cache=int(rollout.engine.kv_cache_gib * GIB) * rollout.engine.tensor_parallel,
        process=ENGINE_BYTES * rollout.engine.tensor_parallel,
    )
    kinds: dict[tuple[int, bool, bool, bool], RankMemory] = {}  # ranks of one kind have the same
    per_rank = []
    for rank in range(layout.num_ranks):
        place, first_copy = layout.coordinates(rank), layout.holds_first_copy(rank)
        kind = (place.pipeline, rank == 0, first_copy, first_copy and place.tensor == 0)
        if kind not in kinds:
            kinds[kind] = _rank(recipe, facts, layout, element, *kind)
        per_rank.append(kinds[kind])
    return MemoryEstimate(tuple(per_rank), (engine,) * rollout.engines)


def _rank(
    recipe: Recipe,
    facts: ModelFacts,
    layout: ParallelLayout,
    element: int,
    stage: int,
    zero: bool,
    first_copy: bool,
    exports: bool,
) -> RankMemory:
    """Of rank 0 or another one, with the first copy of the weights or not; ``exports``: the one of
    its stage that has whole tensors."""
    parameters = states.stage_parameters(facts, layout, stage)
    micro = micro_batch(recipe, layout)
    at = activations.Stage(recipe, facts, layout, micro, element, stage)
    shard = parameters // states.optimizer_shards(recipe, layout)
    on_device, offloaded = states.optimizer_bytes(recipe.trainer.optimizer, element)
    weights = parameters * element
    reference = weights if recipe.algorithm.kl_coefficient > 0 else 0
    buckets = min(2 * recipe.rollout.transfer_bucket_mib * 2**20, facts.parameters * element)
    shared = parked = buffer = 0
    if recipe.rollout.colocated:
        parked = shard * on_device
        if recipe.rollout.transfer_backend == "cuda_ipc":
            buffer = weights  # held until the engine's cache is awake
        else:
            parked += parameters * layout.tensor * element * exports
        buckets = 0
    elif exports and recipe.rollout.transfer_backend == "auto":  # in place of the buckets
        shared = max(0, parameters * layout.tensor * element - buckets * zero)
    of_head = 0
    if layout.has_head(stage):
        of_head = head.logits(recipe, facts, layout, micro)
        of_head += head.hidden_states(facts, micro, element)
    return RankMemory(
        weights=weights,
        gradients=parameters * states.GRADIENT,
        optimizer=shard * on_device,
        activations=activations.activations(at),
        logits=of_head,
        temporaries=activations.temporaries(at),
        export=states.gathered_tensor(facts, layout) * element + buckets * zero + buffer,
        swap=reference,
        gathering=states.checkpoint_device_bytes(recipe, facts, layout, stage),
        reference=reference,
        offloaded=shard * offloaded,
        checkpoint=states.checkpoint_host_bytes(recipe, facts, layout, stage, element, first_copy),
        shared=shared,
        parked=parked,
        process=PROCESS_BYTES + RANK_ZERO_BYTES * zero + GPU_BUILD_BYTES * torch_is_for_gpus(),
    )
