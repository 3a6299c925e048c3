"""Which attention computes a recipe's model on this machine, and which cannot."""

from __future__ import annotations

from collections.abc import Iterator

from aent.models.decoder import ModelFacts
from aent.recipe.schema import Recipe
from aent.runtime import environment
from aent.runtime.environment import Attention

# of torch's attention (``trainer.segments``); here, because the memory estimate imports no torch
SHORT = 256  # tokens of a unit, up to which units are computed together, padded to the longest
ROWS = 512  # queries that a mask is made for at once


def attention_of(recipe: Recipe, facts: ModelFacts) -> Attention:
    """The attention that computes the model here: ``trainer.attention``, with ``auto`` resolved."""
    suits = next(_not_in_transformer_engine(recipe, facts), None) is None
    return environment.attention_implementation(recipe.trainer.attention, suits=suits)


def why_not_transformer_engine(recipe: Recipe, facts: ModelFacts) -> str:
    """Why ``auto`` does not choose Transformer Engine here; empty if it does."""
    missing = environment.why_not("transformer_engine")
    return missing or next(_not_in_transformer_engine(recipe, facts), "")


def attention_faults(recipe: Recipe, facts: ModelFacts, *, machine: bool = True) -> Iterator[str]:
    """Why ``trainer.attention`` does not compute this recipe: one sentence each.

    machine: whether this machine is the one that trains.
    """
    requested = recipe.trainer.attention
    if requested == "transformer_engine":
        yield from _not_in_transformer_engine(recipe, facts)
        if machine and (problem := environment.why_not("transformer_engine")):
            yield f"trainer.attention is transformer_engine, but {problem}"
    if requested == "flex" and machine and environment.device_kind() == "cpu":
        yield (
            "trainer.attention=flex has no backward on a CPU in torch, and the trainer sees no GPU "
            "here: sdpa has one"
        )


def _not_in_transformer_engine(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    where = "trainer.attention=transformer_engine"
    if not facts.plain_layers:
        yield (
            f"{where} does not compute this {facts.family.model_type}: its norms, rotary "
            "embeddings, windows or the softcap of its attention are not in its layers; sdpa and "
            "flex compute them"
        )
    if recipe.trainer.share_prompts:
        yield (
            f"{where} cannot keep responses that share a prompt apart (trainer.share_prompts): "
            "sdpa and flex can"
        )
    if recipe.trainer.context_parallel > 1 and facts.windows:
        yield (
            f"{where} has no sliding window (sliding_window={facts.windows[0]}) if ranks share "
            f"sequences (trainer.context_parallel={recipe.trainer.context_parallel}): sdpa and "
            "flex have"
        )
    if recipe.model.dtype == "float32":
        yield f"{where} has no attention in float32 (model.dtype): sdpa and flex have"
