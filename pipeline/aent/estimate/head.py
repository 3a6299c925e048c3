"""Memory of the output layer and the loss, on the last pipeline stage."""

from __future__ import annotations

import math

from aent.entropy.chunks import CHUNK_TOKENS
from aent.estimate.batch import MicroBatch
from aent.layout.parallel import ParallelLayout
from aent.models.decoder import ModelFacts
from aent.recipe.schema import Recipe

LOGIT_COPIES = 2  # the logits and their gradient, while one replaces the other
PROXY_COPIES = 4  # of the logits, in ``min_p_divergence``
HIDDEN_COPIES = 2  # the hidden states at response tokens, and their gradient


def logits(recipe: Recipe, facts: ModelFacts, layout: ParallelLayout, micro: MicroBatch) -> int:
    """Bytes of the logits of one micro-batch's response tokens (the output layer gets no others);
    of one chunk of them with ``trainer.fused_head``; float32 for any type of weights."""
    count = micro.responses
    row = -(-facts.vocab // layout.tensor) * 4
    siren, proxy = recipe.control("nucleus_anchor"), recipe.control("low_probability_kl")
    if siren is None and proxy is None and not recipe.trainer.fused_head:
        return count * row * LOGIT_COPIES
    chunk = min(count, CHUNK_TOKENS)
    chosen = int(siren.share * count) if siren is not None else 0
    kept = 2 if "final_logit_softcapping" in facts.numbers else 1  # before and after the softcap
    once_more = kept * chosen + min(chosen, CHUNK_TOKENS)
    if proxy is not None:
        unlikely = math.ceil(proxy.share * count)
        once_more += kept * unlikely + PROXY_COPIES * min(unlikely, CHUNK_TOKENS)
    return ((chunk if recipe.trainer.fused_head else count * LOGIT_COPIES) + once_more) * row


def hidden_states(facts: ModelFacts, micro: MicroBatch, element: int) -> int:
    """Bytes of the hidden states that enter the output layer; each tensor-parallel rank has all of
    them."""
    return micro.responses * facts.hidden * element * HIDDEN_COPIES
