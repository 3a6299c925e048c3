"""A rank's parameters, gradients and optimizer state, which last for the whole run."""

from __future__ import annotations

from aent.layout.parallel import ParallelLayout
from aent.models.decoder import ModelFacts
from aent.recipe.schema import Recipe
from aent.recipe.training import OptimizerSection

GRADIENT = 4  # bytes per element of Megatron's buffer, for any type of weights
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
# in a checkpoint: main weights and two moments in float32, as Megatron gathers them
GATHERED = 3 * 4


def element_bytes(recipe: Recipe) -> int:
    """Bytes of one weight."""
    return DTYPES[recipe.model.dtype]


def stage_parameters(facts: ModelFacts, layout: ParallelLayout, stage: int) -> int:
    """Parameters of one rank: its layers, and the embedding and output layer of first and last
    stage.

    A tied one is one tensor if there is one stage, else one on each end of the pipeline.
    """
    layers = layout.stage_layers(facts.layers, facts.head_layers)[stage]
    count = len(layers) * facts.layer_parameters // layout.tensor
    table = -(-facts.vocab // layout.tensor) * facts.hidden
    embedding = layout.has_embedding(stage)
    count += table * embedding
    if layout.has_head(stage):
        count += facts.hidden + (0 if facts.tied_embeddings and embedding else table)
    return count


def largest_tensor(facts: ModelFacts) -> int:
    """Elements of the embedding, or of Megatron's linear_fc1, which has gate and up."""
    return max(facts.embedding_parameters, 2 * facts.hidden * facts.ffn)


def gathered_tensor(facts: ModelFacts, layout: ParallelLayout) -> int:
    """Elements of the most that a rank has at once while one tensor is gathered for the engines or
    a file: the whole tensor; with tensor parallelism the ranks' parts too, and of linear_fc1 also
    gate and up, before they are joined (mbridge's ``_weight_merge_across_tp``)."""
    if layout.tensor == 1:
        return largest_tensor(facts)
    return max(2 * facts.embedding_parameters, 3 * 2 * facts.hidden * facts.ffn)


def optimizer_shards(recipe: Recipe, layout: ParallelLayout) -> int:
    """Number of ranks that share one optimizer state: all copies of the weights if distributed."""
    return layout.data * layout.context if recipe.trainer.optimizer.distributed else 1


def optimizer_bytes(settings: OptimizerSection, element: int) -> tuple[int, int]:
    """Bytes of the optimizer for each parameter of its shard: (where the rank computes, in host
    memory with Megatron's ``optimizer_cpu_offload``).

    Adam's two moments and, for 16-bit weights, main weights in float32; other types with
    ``use_precision_aware_optimizer``. In host memory there are also pinned gradients.
    """
    given = settings.megatron
    types = {name: "float32" for name in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")}
    if given.get("use_precision_aware_optimizer"):
        types |= {name: given[name] for name in types if name in given}
    main, first, second = (DTYPES[types[name]] for name in types)
    each = first + second + (main if element < 4 else 0)
    if not given.get("optimizer_cpu_offload"):
        return each, 0
    share = given.get("optimizer_offload_fraction", 0.0)
    return round(each * (1 - share)), round((4 + 8 + GRADIENT) * share)


def checkpoint_host_bytes(
    recipe: Recipe,
    facts: ModelFacts,
    layout: ParallelLayout,
    stage: int,
    element: int,
    first_copy: bool,
) -> int:
    """Host memory that a rank needs while a checkpoint is saved, or read.

    A distributed optimizer's state is gathered whole (on every rank of a data-parallel group; with
    ``checkpoint.memory_efficient`` only on the rank with the first copy of the weights), one bucket
    after the other: one part of it exists twice, in pieces and joined. When it is read, every rank
    has all of it, one of its three parts at a time (``trainer.optimizer_state``), of which the two
    halves of each linear_fc1 are joined beside. ``checkpoint.asynchronous`` keeps a copy of the
    rest, on the ranks that write it.
    """
    settings, parameters = recipe.checkpoint, stage_parameters(facts, layout, stage)
    copied = first_copy and settings.asynchronous and settings.every > 0
    weights = parameters * element if copied else 0
    if not recipe.trainer.optimizer.distributed:
        each = sum(optimizer_bytes(recipe.trainer.optimizer, element))
        return weights + parameters * each if copied else 0
    bucket = _bucket(recipe, facts, layout, stage)
    saving = bucket * GATHERED // optimizer_shards(recipe, layout)  # its own part
    if first_copy or not settings.memory_efficient:
        saving += parameters * GATHERED + max(2 * bucket * 4, weights)
    own_layers = len(layout.stage_layers(facts.layers, facts.head_layers)[stage])
    joined = own_layers * 2 * facts.hidden * facts.ffn // layout.tensor
    return max(saving, 4 * (parameters + joined))


def checkpoint_device_bytes(
    recipe: Recipe, facts: ModelFacts, layout: ParallelLayout, stage: int
) -> int:
    """Bytes on a card: the training backend gathers a distributed optimizer's state there, one
    bucket of one of its three parts at a time."""
    if not recipe.trainer.optimizer.distributed or recipe.checkpoint.memory_efficient:
        return 0
    part = _bucket(recipe, facts, layout, stage) * 4
    return part + part // optimizer_shards(recipe, layout)


def _bucket(recipe: Recipe, facts: ModelFacts, layout: ParallelLayout, stage: int) -> int:
    """Parameters of Megatron's largest bucket: all of them, unless gradients are reduced during the
    backward, and then only on the first pipeline stage."""
    parameters, ddp = stage_parameters(facts, layout, stage), recipe.trainer.ddp
    if not ddp.get("overlap_grad_reduce") or stage > 0:
        return parameters
    size = ddp.get("bucket_size") or max(40_000_000, 1_000_000 * layout.data * layout.context)
    return min(parameters, size + largest_tensor(facts) // layout.tensor)
