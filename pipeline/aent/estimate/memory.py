"""Memory that a run needs, per trainer rank and engine, before it starts.

The numbers are upper bounds of what the run holds at once, from formulas below, with the responses
that entropy controls may ask for besides the recipe's; allocators and the kernels' own buffers come
on top. P is the parameter count of a rank, in its own shard.

=============  ==================================================================================
weights        P x 4 (float32) or P x 2 (bfloat16); twice with a frozen reference
gradients      P x 4: Megatron's gradient buffer, float32 in both cases
optimizer      Adam's two moments P x 8; bfloat16 adds float32 main weights P x 4; a distributed
               optimizer divides both by the data-parallel size
activations    per layer, token and micro-batch in flight, see ``_layer_activation_elements``; with
               full recomputation the layers' inputs, and all of one chunk of layers; with shared
               prompts one mask per micro-batch, and one for each sliding window
logits         response tokens of a micro-batch x V / TP x 4 x 2 (the logits and their gradient);
               with the fused head those of one chunk, x 4 (their gradient takes their place); last
               pipeline stage only
export         the largest whole tensor, gathered, and on rank 0 two transfer buckets; without a GPU
               on each stage's first rank, if that is more, the stage's tensors for engines to read
checkpoint     with ``checkpoint.asynchronous`` a copy of weights and optimizer, in host memory
process        the libraries themselves
=============  ==================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from aent.layout.parallel import ParallelLayout
from aent.models.decoder import NORMS, ModelFacts
from aent.models.facts import model_facts
from aent.recipe.schema import Recipe
from aent.runtime.environment import torch_is_for_gpus

GIB = 2**30
LOGIT_COPIES = 2
PROXY_COPIES = 4  # of the logits, in ``min_p_divergence``
# resident memory of a process without what the model costs, measured on a CPU build: PROCESS for a
# trainer rank (torch, Megatron, transformers, NeMo), RANK_ZERO for what rank 0 has besides (clients
# of the engines, judges, MLflow, figures), ENGINE for one vLLM server with its engine and worker,
# without weights and key-value cache; GPU_BUILD for what a rank has more with torch's default build
# (measured without a GPU, with Megatron 0.19)
PROCESS_BYTES = int(0.57 * GIB)
RANK_ZERO_BYTES = int(0.30 * GIB)
GPU_BUILD_BYTES = int(0.22 * GIB)
ENGINE_BYTES = int(2.0 * GIB)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one trainer rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    export: int
    checkpoint: int
    process: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one rollout engine, all its tensor-parallel workers together."""

    weights: int
    kv_cache: int
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

    def __str__(self) -> str:
        names = [f.name for f in fields(RankMemory)]
        rows = [["GiB", *names, "total"]]
        for rank, memory in enumerate(self.per_rank):
            values = [getattr(memory, name) for name in names] + [memory.total]
            rows.append([f"rank {rank}", *(f"{v / GIB:.2f}" for v in values)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in rows]
        for index, engine in enumerate(self.engines):
            lines.append(
                f"engine {index}: {engine.total / GIB:.2f} GiB (weights "
                f"{engine.weights / GIB:.2f}, key-value cache {engine.kv_cache / GIB:.2f}, "
                f"process {engine.process / GIB:.2f})"
            )
        lines.append(f"together: {self.total_host_bytes / GIB:.2f} GiB on one machine")
        return "\n".join(lines)


def estimate(recipe: Recipe) -> MemoryEstimate:
    """The memory a checked recipe needs; ValueError as ``model_facts`` for an unreadable model."""
    facts = model_facts(recipe.model)
    rollout, layout = recipe.rollout, ParallelLayout.of(recipe.trainer)
    element = 4 if recipe.model.dtype == "float32" else 2
    engine = EngineMemory(
        weights=facts.parameters * element,
        kv_cache=int(rollout.engine.kv_cache_gib * GIB) * rollout.engine.tensor_parallel,
        process=ENGINE_BYTES * rollout.engine.tensor_parallel,
    )
    return MemoryEstimate(
        per_rank=tuple(
            _rank(recipe, facts, layout, element, rank) for rank in range(layout.num_ranks)
        ),
        engines=(engine,) * rollout.engines,
    )


def _rank(
    recipe: Recipe, facts: ModelFacts, layout: ParallelLayout, element: int, rank: int
) -> RankMemory:
    place = layout.coordinates(rank)
    stage = place.pipeline
    parameters = _stage_parameters(facts, layout, stage)
    sharding = layout.data if recipe.trainer.optimizer.distributed else 1
    main_weights = 0 if recipe.model.dtype == "float32" else 4
    copies = 2 if recipe.algorithm.kl_coefficient > 0 else 1
    transfer = 0
    if rank == 0:
        buckets = 2 * recipe.rollout.transfer_bucket_mib * 2**20
        transfer = min(buckets, facts.parameters * element)
    shares = not torch_is_for_gpus() and recipe.rollout.transfer_backend == "auto"
    if shares and layout.holds_first_copy(rank) and place.tensor == 0:
        transfer = max(transfer, parameters * layout.tensor * element)
    optimizer = parameters * (8 + main_weights) // sharding
    copied = recipe.checkpoint.asynchronous and recipe.checkpoint.every > 0
    return RankMemory(
        weights=parameters * element * copies,
        gradients=parameters * 4,
        optimizer=optimizer,
        activations=_activations(recipe, facts, layout, element, stage),
        logits=_logits(recipe, facts, layout) if layout.has_head(stage) else 0,
        export=_largest_tensor(facts) * element + transfer,
        checkpoint=parameters * element + optimizer if copied else 0,
        process=PROCESS_BYTES
        + (RANK_ZERO_BYTES if rank == 0 else 0)
        + (GPU_BUILD_BYTES if torch_is_for_gpus() else 0),
    )


def _stage_parameters(facts: ModelFacts, layout: ParallelLayout, stage: int) -> int:
    """Parameters of one rank: its layers, and the tables of the first and last stage.

    A tied table is one tensor with one stage, and one on each end of a longer pipeline.
    """
    layers = layout.stage_layers(facts.layers, facts.head_layers)[stage]
    count = len(layers) * facts.layer_parameters // layout.tensor
    table = -(-facts.vocab // layout.tensor) * facts.hidden
    embedding = layout.has_embedding(stage)
    count += table * embedding
    if layout.has_head(stage):
        count += facts.hidden + (0 if facts.tied_embeddings and embedding else table)
    return count


def _largest_tensor(facts: ModelFacts) -> int:
    """Elements of a table, or of Megatron's linear_fc1, which has gate and up."""
    return max(facts.embedding_parameters, 2 * facts.hidden * facts.ffn)


def _largest(recipe: Recipe) -> tuple[int, int]:
    """Responses of the largest possible group, and of the largest possible mini-batch: the
    recipe's, unless an entropy control gives some questions more."""
    rollout = recipe.rollout
    prompts = rollout.prompts_per_step // recipe.trainer.mini_batches
    group = rollout.samples_per_prompt
    total = prompts * group
    budget, reroll = recipe.control("rollout_budget"), recipe.control("reroll")
    if budget is not None:  # no more in a step, but shared out otherwise
        group = budget.high
        total = min(prompts * group, rollout.prompts_per_step * rollout.samples_per_prompt)
    if reroll is not None:  # those of a group's answers to the same question that are above a mean
        better, again = group - 1, math.ceil(reroll.share * rollout.prompts_per_step)
        group += min(reroll.limit, better)
        total += min(reroll.limit, min(prompts, again) * better)
    return group, total


def _longest_unit(recipe: Recipe) -> int:
    """Tokens of the largest possible group behind one prompt."""
    group, _ = _largest(recipe)
    return recipe.rollout.max_prompt_tokens + group * recipe.rollout.max_response_tokens


def _mini_batch(recipe: Recipe, layout: ParallelLayout) -> tuple[int, int]:
    """(tokens, response tokens) of the longest possible mini-batch, per data-parallel rank.

    A prompt is there once a response; once a group where prompts are shared and the longest group
    fits a micro-batch (else it is split, and its prompt computed again).
    """
    rollout, trainer = recipe.rollout, recipe.trainer
    group, total = _largest(recipe)
    prompts = responses = -(-total // layout.data)
    if trainer.share_prompts and _longest_unit(recipe) <= trainer.micro_batch_tokens:
        groups = rollout.prompts_per_step // trainer.mini_batches
        prompts = -(-groups // layout.data)
        responses = min(prompts * group, total)
    tokens = responses * rollout.max_response_tokens
    return prompts * rollout.max_prompt_tokens + tokens, tokens


def _activations(
    recipe: Recipe, facts: ModelFacts, layout: ParallelLayout, element: int, stage: int
) -> int:
    """What the backward pass needs, of every micro-batch in flight.

    Pipeline schedule 1F1B (arXiv 2104.04473): stage p of P has forwarded at most P - p
    micro-batches before the first backward.
    """
    trainer = recipe.trainer
    tokens, _ = _mini_batch(recipe, layout)
    micro_tokens = min(trainer.micro_batch_tokens, tokens)
    in_flight = min(layout.pipeline - stage, -(-tokens // micro_tokens))
    longest = recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens
    masks = sum(window < longest for window in facts.windows)
    if trainer.share_prompts:
        longest, masks = _longest_unit(recipe), masks + 1
    longest = min(micro_tokens, longest)
    per_layer = _layer_activation_elements(facts, layout.tensor, trainer.sequence_parallel, longest)
    layers = len(layout.stage_layers(facts.layers, facts.head_layers)[stage])
    whole, at_once = layers, 0  # layers that keep everything; and one after the other in backward
    inputs = 0  # layers, or chunks of them, that keep their input alone
    if trainer.megatron.get("recompute_granularity") == "full":
        n = min(layers, trainer.megatron["recompute_num_layers"])
        if trainer.megatron["recompute_method"] == "uniform":
            whole, at_once, inputs = 0, n, -(-layers // n)
        else:
            whole, at_once, inputs = layers - n, 1, n
    kept = facts.hidden / (layout.tensor if trainer.sequence_parallel else 1)
    per_token = (whole * per_layer + inputs * kept) * element
    once = at_once * per_layer * element * micro_tokens
    per_token += masks * 4 * longest  # a row of float32 for each token, as long as its unit
    return int(in_flight * micro_tokens * per_token + once)


def _layer_activation_elements(
    facts: ModelFacts, tensor: int, sequence_parallel: bool, longest: int
) -> float:
    """Elements per token that one layer keeps for its backward.

    As Korthikanti et al. (arXiv 2205.05198, section 4), for this project's layer: no dropout, an
    attention that keeps no matrix of scores, grouped queries, a gated feed-forward. Outside the
    tensor-parallel regions (divided by TP with sequence parallelism only) 6 h: input and output of
    both norms, output of attention and feed-forward. Inside, divided by TP: query, key and value
    before and query and key after the rotation, the attention's output; gate, up, the gate's
    activation and their product. Norms of queries and keys keep both once more; norms by 1 + weight
    keep their inputs in float32 besides, two elements each at most; a softcap of the attention
    keeps two rows of scores for each head, as long as the unit.

    longest: tokens of the longest unit.
    """
    norms = len(NORMS[facts.family.norms])
    kept = 6 + 2 * norms * facts.family.unit_offset
    outside = kept * facts.hidden / (tensor if sequence_parallel else 1)
    copies = 3 + (facts.family.qk_norm != "none")
    attention = facts.head_dim * copies * (facts.heads + facts.kv_groups)
    if "attn_logit_softcapping" in facts.numbers:
        attention += 2 * facts.heads * longest
    return outside + (attention + 4 * facts.ffn) / tensor


def _logits(recipe: Recipe, facts: ModelFacts, layout: ParallelLayout) -> int:
    """Logits of the response tokens of one micro-batch (the output layer sees no others)."""
    _, responses = _mini_batch(recipe, layout)
    count = min(recipe.trainer.micro_batch_tokens, responses)
    row = -(-facts.vocab // layout.tensor) * 4
    siren, proxy = recipe.control("nucleus_anchor"), recipe.control("low_probability_kl")
    if siren is None and proxy is None and not recipe.trainer.fused_head:
        return count * row * LOGIT_COPIES
    from aent.entropy.head import CHUNK_TOKENS  # late: torch

    chunk = min(count, CHUNK_TOKENS)
    chosen = int(siren.share * count) if siren is not None else 0
    kept = 2 if "final_logit_softcapping" in facts.numbers else 1  # as they are, and capped
    once_more = kept * chosen + min(chosen, CHUNK_TOKENS)
    if proxy is not None:
        unlikely = math.ceil(proxy.share * count)
        once_more += kept * unlikely + PROXY_COPIES * min(unlikely, CHUNK_TOKENS)
    return ((chunk if recipe.trainer.fused_head else count * LOGIT_COPIES) + once_more) * row
