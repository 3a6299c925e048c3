"""Memory of activations: what a rank keeps for the backward pass, and temporaries of one layer.

Counted as autograd saves it for this project's own layers (Megatron's parallel linear layers,
torch's norms and attention), which a test measures: ``tests/estimate/test_measured.py``. On a GPU,
each of torch's fused norms keeps one tensor less, and Transformer Engine's layers keep about as
much as these; that was not measured, since there was no GPU. After Korthikanti et al., arXiv
2205.05198, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aent.estimate.batch import MicroBatch
from aent.layout.parallel import ParallelLayout
from aent.models.attention import ROWS, SHORT
from aent.models.decoder import NORMS, ModelFacts
from aent.recipe.schema import Recipe


@dataclass(frozen=True)
class Stage:
    """What a rank computes: the layers of one pipeline stage, on its part of the micro-batches."""

    recipe: Recipe
    facts: ModelFacts
    layout: ParallelLayout
    micro: MicroBatch
    element: int  # bytes
    number: int  # of the pipeline stage

    @property
    def residual(self) -> float:
        """Elements per token between layers."""
        tensor = self.layout.tensor if self.recipe.trainer.sequence_parallel else 1
        return self.facts.hidden / tensor

    @property
    def layers(self) -> int:
        """Number of its layers."""
        stages = self.layout.stage_layers(self.facts.layers, self.facts.head_layers)
        return len(stages[self.number])


def activations(at: Stage) -> int:
    """Bytes that autograd keeps, of all micro-batches in flight; separately for the output layer.

    Pipeline schedule 1F1B (arXiv 2104.04473): stage p of P has forwarded at most P - p
    micro-batches before the first backward. With full recomputation, a layer (or a chunk of layers)
    keeps only its input; one chunk after the other has all its activations, in the backward.
    """
    settings, facts, layout, micro = at.recipe.trainer.megatron, at.facts, at.layout, at.micro
    layers = at.layers
    whole, at_once, inputs = layers, 0, 0
    if settings.get("recompute_granularity") == "full":
        n = min(layers, settings["recompute_num_layers"])
        if settings["recompute_method"] == "uniform":
            whole, at_once, inputs = 0, n, -(-layers // n)
        else:
            whole, at_once, inputs = layers - n, 1, n
    layer, residual = _layer(at), at.residual * at.element
    kept = whole * layer + inputs * residual
    kept += 2 * facts.head_dim * len(facts.ropes) * at.element  # cosines and sines, for all layers
    # not at the same time: the last norm, which the backward finishes first; then a chunk that is
    # computed again, when the layers after it are finished (its input is kept)
    once = at_once * layer - residual - whole * layer
    if "mlp" in recomputed_modules(at.recipe):
        once = _feed_forward(at)
    if layout.has_head(at.number):
        last = 2 * at.residual * _norm_element(at) + 4
        once = max(once, last)
    else:  # what was sent on stays until its gradient arrives
        kept += residual
    in_flight = min(layout.pipeline - at.number, micro.in_mini_batch)
    masks = in_flight * _masks(at)
    return int(micro.tokens * (in_flight * kept + max(once, 0)) + masks)


def recomputed_modules(recipe: Recipe) -> list[Any]:
    """Parts of each layer that are computed again, by Megatron's names."""
    settings = recipe.trainer.megatron
    if settings.get("recompute_granularity") != "selective":
        return []
    given = settings.get("recompute_modules")
    return ["core_attn"] if given is None else given


def temporaries(at: Stage) -> int:
    """Bytes of the most that is there at once besides what autograd keeps, while one layer is
    computed backwards; as the same test measures it.

    The largest of three. The feed-forward's: gradients of gate and up, apart and together, 4 f / TP
    a token (fused, 5 f / TP), with sequence parallelism the gathered input, which Megatron keeps a
    buffer for. A norm's, 5.5 h by torch's operations. The attention's, see ``_gradients``. The
    first and the last have the residual's gradient beside them. On top: with full recomputation of
    n layers at once some 2.5 + n hidden states, with that of the attention its output, and on later
    pipeline stages what came from the stage before.
    """
    trainer, facts, layout, residual = at.recipe.trainer, at.facts, at.layout, at.residual
    settings = trainer.megatron
    gathered = trainer.sequence_parallel and layout.tensor > 1
    feed_forward = (5 if _fused(at) else 4) * facts.ffn / layout.tensor
    feed_forward += residual + facts.hidden * gathered
    per_token = max(feed_forward, 5.5 * residual, residual + _gradients(at))
    if settings.get("recompute_granularity") == "full":
        n = min(at.layers, settings["recompute_num_layers"])
        per_token += (2.5 + (n if settings["recompute_method"] == "uniform" else 1)) * residual
    elif "core_attn" in recomputed_modules(at.recipe):
        per_token += facts.heads * facts.head_dim / layout.tensor
    per_token += residual * (at.number > 0)
    return int(at.micro.tokens * per_token * at.element)


def _gradients(at: Stage) -> float:
    """Elements of a token's gradients in the backward of the attention of units that are not
    short: of the copies of keys and values (``_attention``), and of what they are copies of; with
    context parallelism that is those of all ranks, apart and together, else they and three times
    the queries."""
    facts, layout, micro = at.facts, at.layout, at.micro
    queries = facts.heads * facts.head_dim / layout.tensor
    keys = facts.kv_groups * facts.head_dim / layout.tensor
    if layout.context > 1:
        return 2 * keys * (layout.context + 0.5 + micro.copied) + 4 * keys * layout.context
    if micro.longest > SHORT:
        return 2 * keys * micro.copied + 2 * keys + 3 * queries
    return 0.0


def _fused(at: Stage) -> bool:
    """Whether Megatron computes gate, activation and product by one function."""
    wanted = bool(at.recipe.trainer.megatron.get("bias_activation_fusion"))
    return wanted and at.facts.family.activation == "silu"


def _masks(at: Stage) -> int:
    """Bytes of a micro-batch's masks, each made once for all layers: for short units one row per
    token, as long as the longest of these; else one strip of ``ROWS`` queries
    (``trainer.segments``)."""
    micro, layout, shared = at.micro, at.layout, at.recipe.trainer.share_prompts
    windows = [window for window in at.facts.windows if window < micro.sequence]
    if layout.context == 1 and micro.longest <= SHORT:
        return micro.tokens * (len(windows) + shared) * micro.longest * at.element
    widths = [min(micro.sequence, window - 1 + ROWS) for window in windows]
    if shared or layout.context > 1:  # queries that begin after their keys
        widths.append(micro.sequence)
    return sum(widths) * min(ROWS, micro.sequence) * at.element


def _norm_element(at: Stage) -> int:
    """Bytes per element that a norm keeps: one with weight 1 + w is computed in float32."""
    return 4 if at.facts.family.unit_offset else at.element


def _layer(at: Stage) -> float:
    """Bytes per token that one layer keeps: of each norm its input, its result before the weight
    and its scale; of attention and feed-forward also the inputs of their first linear layers.
    Tensors as wide as the model are divided by TP only with sequence parallelism."""
    norms = len(NORMS[at.facts.family.norms])
    of_norms = norms * (2 * at.residual * _norm_element(at) + 4)
    attention = at.residual * at.element + _attention(at)
    if "mlp" in recomputed_modules(at.recipe):  # only its input, and no norm
        return of_norms / 2 + at.residual * at.element + attention
    return of_norms + attention + _feed_forward(at)


def _feed_forward(at: Stage) -> float:
    """Bytes that the feed-forward keeps of a token, its norms apart: its input; gate and up as one,
    the activation, up once more (Megatron adds an offset of 0), the product, or without the second
    and third of these with Megatron's ``bias_activation_fusion``."""
    parts = 3 if _fused(at) else 5
    return (at.residual + parts * at.facts.ffn / at.layout.tensor) * at.element


def _attention(at: Stage) -> float:
    """Bytes per token that the attention keeps between its two linear layers: queries, keys and
    values as one tensor (the values are a view of it), queries and keys after the rotation, the
    attention's output, and a float32 per head.

    Units that are not short are computed one by one: the output exists twice, per unit and joined,
    and responses with a shared prompt have copies of its keys and values. With context parallelism,
    each of a rank's two chunks of a sequence has copies of the keys and values that it sees
    (together those of all ranks and half a chunk more), and the joint tensor of queries, keys and
    values is not kept. With a softcap there is no fused attention: two rows of scores per head, as
    long as the unit, and keys and values repeated for each head.
    """
    facts, layout, micro, element = at.facts, at.layout, at.micro, at.element
    queries = facts.heads * facts.head_dim / layout.tensor
    keys = facts.kv_groups * facts.head_dim / layout.tensor
    normed = queries + keys if facts.family.qk_norm != "none" else 0
    if "core_attn" in recomputed_modules(at.recipe):
        # before the rotation: queries once more, reordered
        return (3 * queries + 2 * keys + normed) * element
    scores = 4 * facts.heads / layout.tensor
    elements = 3 * queries + 3 * keys + normed
    if layout.context > 1:
        elements = 3 * queries + 2 * keys * (layout.context + 0.5 + micro.copied) + normed
    elif micro.longest > SHORT:
        elements += queries + 2 * keys * micro.copied
    if "attn_logit_softcapping" in facts.numbers:
        elements += queries + 2 * facts.heads / layout.tensor * micro.longest
    return elements * element + scores
