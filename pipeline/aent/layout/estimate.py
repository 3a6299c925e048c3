"""What a run needs before it starts: memory per trainer rank, engines, and who is where.

The numbers are upper bounds of what the run holds at once, from formulas below, with the responses
that entropy controls may ask for besides the recipe's; allocators and the kernels' own buffers come
on top. P is the parameter count of a rank, in its own shard.

=============  ==================================================================================
weights        P x 4 (float32) or P x 2 (bfloat16); twice with a frozen reference
gradients      P x 4: Megatron's gradient buffer, float32 in both cases
optimizer      Adam's two moments P x 8; bfloat16 adds float32 main weights P x 4; a distributed
               optimizer divides both by the data-parallel size
activations    per layer, token and micro-batch in flight, see ``_layer_activation_elements``; with
               shared prompts one mask per micro-batch
logits         response tokens of a micro-batch x V / TP x 4 x 2 (the logits and their gradient);
               with the fused head those of one chunk, x 4 (their gradient takes their place); last
               pipeline stage only
export         the largest whole tensor, gathered, and on rank 0 two transfer buckets
checkpoint     with ``checkpoint.asynchronous`` a copy of weights and optimizer, in host memory
process        the libraries themselves
=============  ==================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import accumulate

from aent.models.decoder import ModelFacts
from aent.models.facts import model_facts
from aent.recipe.folder import run_folder
from aent.recipe.schema import Recipe

GIB = 2**30
LOGIT_COPIES = 2
# resident memory of a process without what the model costs, measured on a CPU build: PROCESS for a
# trainer rank (torch, Megatron, transformers, NeMo), RANK_ZERO for what rank 0 has besides (clients
# of the engines, judges, MLflow, figures), ENGINE for one vLLM server with its engine and worker,
# without weights and key-value cache
PROCESS_BYTES = int(0.67 * GIB)
RANK_ZERO_BYTES = int(0.18 * GIB)
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
    trainer, rollout = recipe.trainer, recipe.rollout
    ranks = trainer.tensor_parallel * trainer.pipeline_parallel * trainer.data_parallel
    element = 4 if recipe.model.dtype == "float32" else 2
    engine = EngineMemory(
        weights=facts.parameters * element,
        kv_cache=int(rollout.engine.kv_cache_gib * GIB) * rollout.engine.tensor_parallel,
        process=ENGINE_BYTES * rollout.engine.tensor_parallel,
    )
    return MemoryEstimate(
        per_rank=tuple(_rank(recipe, facts, element, rank) for rank in range(ranks)),
        engines=(engine,) * rollout.engines,
    )


def _rank(recipe: Recipe, facts: ModelFacts, element: int, rank: int) -> RankMemory:
    trainer = recipe.trainer
    _, _, stage = rank_coordinates(recipe, rank)
    parameters = _stage_parameters(facts, trainer.tensor_parallel, trainer.pipeline_parallel, stage)
    sharding = trainer.data_parallel if trainer.optimizer.distributed else 1
    main_weights = 0 if recipe.model.dtype == "float32" else 4
    copies = 2 if recipe.algorithm.kl_coefficient > 0 else 1
    last = stage == trainer.pipeline_parallel - 1
    buckets = 2 * recipe.rollout.transfer_bucket_mib * 2**20
    optimizer = parameters * (8 + main_weights) // sharding
    copied = recipe.checkpoint.asynchronous and recipe.checkpoint.every > 0
    return RankMemory(
        weights=parameters * element * copies,
        gradients=parameters * 4,
        optimizer=optimizer,
        activations=_activations(recipe, facts, element, stage),
        logits=_logits(recipe, facts) if last else 0,
        export=_largest_tensor(facts) * element
        + (min(buckets, facts.parameters * element) if rank == 0 else 0),
        checkpoint=parameters * element + optimizer if copied else 0,
        process=PROCESS_BYTES + (RANK_ZERO_BYTES if rank == 0 else 0),
    )


def _stage_parameters(facts: ModelFacts, tensor: int, pipeline: int, stage: int) -> int:
    """Parameters of one rank: its layers, and the tables of the first and last stage.

    A tied table is one tensor with one stage, and one on each end of a longer pipeline.
    """
    count = facts.stage_layers(pipeline)[stage] * facts.layer_parameters // tensor
    table = -(-facts.vocab // tensor) * facts.hidden
    first, last = stage == 0, stage == pipeline - 1
    count += table * first
    if last:
        count += facts.hidden + (0 if facts.tied_embeddings and first else table)
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


def _mini_batch(recipe: Recipe) -> tuple[int, int]:
    """(tokens, response tokens) of the longest possible mini-batch, per data-parallel rank.

    A prompt is there once a response; once a group where prompts are shared and the longest group
    fits a micro-batch (else it is split, and its prompt computed again).
    """
    rollout, trainer = recipe.rollout, recipe.trainer
    group, total = _largest(recipe)
    prompts = responses = -(-total // trainer.data_parallel)
    if trainer.share_prompts and _longest_unit(recipe) <= trainer.micro_batch_tokens:
        groups = rollout.prompts_per_step // trainer.mini_batches
        prompts = -(-groups // trainer.data_parallel)
        responses = min(prompts * group, total)
    tokens = responses * rollout.max_response_tokens
    return prompts * rollout.max_prompt_tokens + tokens, tokens


def _activations(recipe: Recipe, facts: ModelFacts, element: int, stage: int) -> int:
    """What the backward pass needs, of every micro-batch in flight.

    Pipeline schedule 1F1B (arXiv 2104.04473): stage p of P has forwarded at most P - p
    micro-batches before the first backward.
    """
    trainer = recipe.trainer
    tokens, _ = _mini_batch(recipe)
    micro_tokens = min(trainer.micro_batch_tokens, tokens)
    in_flight = min(trainer.pipeline_parallel - stage, -(-tokens // micro_tokens))
    per_layer = _layer_activation_elements(
        facts, trainer.tensor_parallel, trainer.sequence_parallel
    )
    layers = facts.stage_layers(trainer.pipeline_parallel)[stage]
    per_token = layers * per_layer * element
    if trainer.share_prompts:  # the mask: a row of float32 for each token, as long as its unit
        per_token += 4 * min(micro_tokens, _longest_unit(recipe))
    return int(in_flight * micro_tokens * per_token)


def _layer_activation_elements(facts: ModelFacts, tensor: int, sequence_parallel: bool) -> float:
    """Elements per token that one layer keeps for its backward.

    As Korthikanti et al. (arXiv 2205.05198, section 4), for this project's layer: no dropout, an
    attention that keeps no matrix of scores, grouped queries, a gated feed-forward. Outside the
    tensor-parallel regions (divided by TP with sequence parallelism only) 6 h: input and output of
    both norms, output of attention and feed-forward. Inside, divided by TP: query, key and value
    before and query and key after the rotation, the attention's output; gate, up, the gate's
    activation and their product.
    """
    outside = 6 * facts.hidden / (tensor if sequence_parallel else 1)
    attention = facts.head_dim * (3 * facts.heads + 3 * facts.kv_groups)
    return outside + (attention + 4 * facts.ffn) / tensor


def _logits(recipe: Recipe, facts: ModelFacts) -> int:
    """Logits of the response tokens of one micro-batch (the output layer sees no others)."""
    _, responses = _mini_batch(recipe)
    count = min(recipe.trainer.micro_batch_tokens, responses)
    row = -(-facts.vocab // recipe.trainer.tensor_parallel) * 4
    siren = recipe.control("nucleus_anchor")
    if siren is None and not recipe.trainer.fused_head:
        return count * row * LOGIT_COPIES
    from aent.entropy.head import CHUNK_TOKENS  # late: torch

    chunk = min(count, CHUNK_TOKENS)
    chosen = int(siren.share * count) if siren is not None else 0
    once_more = chosen + min(chosen, CHUNK_TOKENS)
    return ((chunk if recipe.trainer.fused_head else count * LOGIT_COPIES) + once_more) * row


def rank_coordinates(recipe: Recipe, rank: int) -> tuple[int, int, int]:
    """(tensor, data, pipeline) index of a rank, in Megatron's default order tp-cp-ep-dp-pp."""
    tensor, data = recipe.trainer.tensor_parallel, recipe.trainer.data_parallel
    return rank % tensor, rank // tensor % data, rank // (tensor * data)


def describe(recipe: Recipe) -> str:
    """The processes of a checked recipe: every trainer rank's place, the engines, the folder."""
    trainer, rollout = recipe.trainer, recipe.rollout
    facts = model_facts(recipe.model)
    tensor, data, pipeline = (
        trainer.tensor_parallel,
        trainer.data_parallel,
        trainer.pipeline_parallel,
    )
    ranks = tensor * data * pipeline
    name = recipe.model.bundled or recipe.model.path
    lines = [
        f"model: {name}, {facts.parameters / 1e6:.4g} M parameters in {facts.layers} layers, "
        f"vocabulary {facts.vocab}, {recipe.model.dtype}",
        f"trainer: {ranks} ranks = tensor {tensor} x data {data} x pipeline {pipeline}",
    ]
    ends = list(accumulate(facts.stage_layers(pipeline), initial=0))
    for rank in range(ranks):
        t, d, p = rank_coordinates(recipe, rank)
        layers = f"layers {ends[p]}-{ends[p + 1] - 1}"
        extra = (", embedding" if p == 0 else "") + (
            ", output layer and loss" if p == pipeline - 1 else ""
        )
        role = "; engines, judges, tracking" if rank == 0 else ""
        lines.append(f"  rank {rank}: tensor {t}, data {d}, pipeline {p}: {layers}{extra}{role}")
    if rollout.urls:
        lines += [f"engine: {url} (started by somebody else)" for url in rollout.urls]
    for index in range(rollout.engines):
        port = rollout.engine.port + index if rollout.engine.port else "a free one"
        lines.append(
            f"engine {index}: one vLLM server here, tensor {rollout.engine.tensor_parallel}, "
            f"port: {port}"
        )
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    reroll = recipe.control("reroll")
    more = f" and at most {reroll.limit} re-rolled" if reroll is not None else ""
    lines.append(
        f"step: {rollout.prompts_per_step} prompts x {rollout.samples_per_prompt} samples = "
        f"{samples}{more}, in {trainer.mini_batches} mini-batches; {recipe.steps} steps"
    )
    lines.append(f"judges: {recipe.task.judge_processes} processes")
    lines.append(f"run folder: {run_folder(recipe)}")
    return "\n".join(lines)
