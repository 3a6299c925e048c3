"""Checks that a recipe's model can be trained with the recipe's layout and lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aent.checks import controls as check_controls
from aent.layout.parallel import ParallelLayout
from aent.models import chat, weight_files
from aent.models.attention import attention_faults
from aent.models.config_json import ModelError
from aent.models.decoder import ModelFacts
from aent.models.facts import are_known, model_facts
from aent.models.vocabulary import tokenizer_faults
from aent.recipe.schema import Recipe


def faults(recipe: Recipe, *, machine: bool = True) -> list[str]:
    """One sentence per fault, as in ``aent.checks.recipe``. The headers of all weight files are
    read only with ``machine``; config.json is read if it exists here."""
    missing = list(_missing(recipe, machine))
    if missing or not (machine or are_known(recipe.model)):
        return missing
    field = "model.bundled" if recipe.model.path is None else "model.path"
    try:
        facts = model_facts(recipe.model)
    except ModelError as error:
        return [f"{field}: {fault}" for fault in error.faults]
    found = [*_layout(recipe, facts), *_lengths(recipe, facts)]
    found += check_controls.unreachable(recipe, facts.vocab)
    found += [f"{field}: {fault}" for fault in _not_served(facts)]
    found += attention_faults(recipe, facts, machine=machine)
    return found + (_folder(recipe, facts) if machine else [])


def folder_faults(recipe: Recipe) -> list[str]:
    """Those of ``faults`` that are the model folder's own, on whatever machine: of a recipe whose
    model is here, without faults of ``machine=False``."""
    return list(_missing(recipe, True)) or _folder(recipe, model_facts(recipe.model))


def _folder(recipe: Recipe, facts: ModelFacts) -> list[str]:
    found: list[str] = []
    if recipe.model.path is not None:
        folder = Path(recipe.model.path).expanduser()
        found += [f"model.path: {fault}" for fault in weight_files.faults(folder, facts)]
        found += tokenizer_faults(recipe.model, facts.vocab)
    return found + chat.faults(recipe)


def _missing(recipe: Recipe, machine: bool) -> Iterator[str]:
    """Faults of models and files that do not exist."""
    path, bundled = recipe.model.path, recipe.model.bundled
    if (path is None) == (bundled is None):
        given = "neither is given" if path is None else "both are given"
        yield f"exactly one of model.path and model.bundled is needed: {given}"
        return
    if not machine:
        return
    if path is not None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            yield f"model.path: there is no folder {path}"
        elif not (folder / "config.json").is_file():
            yield f"model.path: {path} is not a Hugging Face folder: it has no config.json"
    tokenizer = recipe.model.tokenizer_path
    if tokenizer is not None and not Path(tokenizer).expanduser().exists():
        yield f"model.tokenizer_path: there is no file or folder {tokenizer}"


def _layout(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    layout = ParallelLayout.of(recipe.trainer)
    for count, what in (
        (facts.heads, "attention heads"),
        (facts.kv_groups, "key-value groups"),
        (facts.ffn, "feed-forward columns"),
    ):
        if count % layout.tensor:
            yield (
                f"trainer.tensor_parallel={layout.tensor} does not divide the model's {count} "
                f"{what}"
            )
    try:
        layout.stage_layers(facts.layers, facts.head_layers)
    except ValueError as error:
        yield str(error)
    if recipe.trainer.sequence_parallel and layout.tensor == 1:
        yield "trainer.sequence_parallel needs trainer.tensor_parallel above 1"
    engine = recipe.rollout.engine.tensor_parallel
    if recipe.rollout.engines and facts.heads % engine:
        yield (
            f"rollout.engine.tensor_parallel={engine} does not divide the model's "
            f"{facts.heads} attention heads"
        )
    if recipe.entropy.top_k is not None and recipe.entropy.top_k > facts.vocab:
        yield (
            f"entropy.top_k={recipe.entropy.top_k} is more than the model's vocabulary of "
            f"{facts.vocab}"
        )


def _not_served(facts: ModelFacts) -> Iterator[str]:
    """Models that the trainer supports but no engine does."""
    some = any(layer.window is None for layer in facts.attention)
    if facts.stated_window is not None and some and not facts.family.serves_mixed_windows:
        yield (
            f"sliding_window={facts.stated_window} is not in every layer, but vLLM serves a "
            f"{facts.family.model_type} only with a window in all layers or in none"
        )


def _lengths(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    total = recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens
    what = f"rollout.max_prompt_tokens + rollout.max_response_tokens = {total} is"
    if total > facts.max_positions:
        yield f"{what} more than the model's {facts.max_positions} positions"
    elif facts.longest is not None and total > facts.longest:
        yield (
            f"{what} more than the {facts.longest} tokens of original_max_position_embeddings, up "
            "to which rope_type longrope is implemented"
        )
