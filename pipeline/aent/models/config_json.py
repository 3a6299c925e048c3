"""Reads a model's config.json without guessing.

A configuration that no record of ``aent.models.families`` covers is refused, with one sentence for
each reason that names the field.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

from aent.models.decoder import ModelFacts
from aent.models.families import FAMILIES, Family
from aent.models.layer_attention import (
    is_number,
    read_layers,
    read_ropes,
    rope_faults,
    stated_window,
)


class ModelError(ValueError):
    """The model cannot be trained; ``faults`` are sentences that name a file and a field."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def read(config: Any, where: str) -> ModelFacts:
    """Facts from the content of a config.json; ``where`` names it in the sentences of ModelError.

    Raises ModelError for anything that no record covers. Fields that transformers' class of this
    model_type does not have are ignored, as transformers ignores them.
    """
    if not isinstance(config, dict):
        raise ModelError([f"{where} is not a JSON object"])
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ModelError([f"{where}: {_unknown_type(config)}"])
    faults = [*_not_computed(config, family)]
    sizes = _sizes(config, family, faults)
    numbers = _numbers(config, family, faults)
    ropes = read_ropes(config, family)
    for rope in ropes:
        faults += rope_faults(rope, family, sizes.get("head_dim", 2) // 2)
    layers = sizes.get("num_hidden_layers", 0)
    attention = () if faults else read_layers(config, family, layers, faults)
    if faults:
        raise ModelError([f"{where}: {fault}" for fault in faults])
    tied = config.get("tie_word_embeddings")
    return ModelFacts(
        family=family,
        layers=layers,
        hidden=sizes["hidden_size"],
        ffn=sizes["intermediate_size"],
        heads=sizes["num_attention_heads"],
        kv_groups=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        vocab=sizes["vocab_size"],
        max_positions=sizes["max_position_embeddings"],
        tied_embeddings=family.tied if tied is None else bool(tied),
        attention_bias=_flag(config, family, "attention_bias"),
        mlp_bias=_flag(config, family, "mlp_bias"),
        attention=attention,
        stated_window=stated_window(config, family),
        ropes=ropes,
        numbers=numbers,
    )


def _sizes(config: dict[str, Any], family: Family, faults: list[str]) -> dict[str, int]:
    """The whole numbers that every family has."""
    sizes: dict[str, int] = {}
    before = len(faults)

    def size(name: str, default: int | None = None) -> None:
        value = config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(f"{name} must be a positive whole number, got {value!r}")
        else:
            sizes[name] = value

    for name in (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
        "vocab_size", "max_position_embeddings",
    ):  # fmt: skip
        size(name)
    heads, hidden = sizes.get("num_attention_heads", 1), sizes.get("hidden_size", 2)
    stated = "num_key_value_heads" in config  # null means: as many as heads
    size("num_key_value_heads", heads if stated else family.key_value_heads or heads)
    size("head_dim", family.head_dim or max(1, hidden // heads))
    if len(faults) > before:
        return sizes
    if heads % sizes["num_key_value_heads"]:
        groups = sizes["num_key_value_heads"]
        faults.append(f"num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    elif "head_dim" not in config and family.head_dim is None and hidden % heads:
        faults.append(f"hidden_size={hidden} is not a multiple of num_attention_heads={heads}")
    elif sizes["head_dim"] % 2:
        faults.append(f"head_dim={sizes['head_dim']} is odd: it cannot be rotated in two halves")
    return sizes


def _numbers(config: dict[str, Any], family: Family, faults: list[str]) -> dict[str, float]:
    """The numbers that a family computes with, without those that are null."""
    numbers: dict[str, float] = {}
    for name, default in {"rms_norm_eps": family.norm_eps, **family.numbers}.items():
        value = config.get(name, default)
        if value is None and name in family.optional:
            continue
        if value is not None and is_number(value) and value > 0:
            numbers[name] = value
        else:
            faults.append(f"{name} must be a number above 0, got {value!r}")
    return numbers


def _flag(config: dict[str, Any], family: Family, name: str) -> bool:
    """Whether an option of the family is on; transformers ignores options that it does not have."""
    return name in family.computed and bool(config.get(name))


def _unknown_type(config: dict[str, Any]) -> str:
    given = config.get("model_type")
    known = ", ".join(FAMILIES)
    if given is None:
        return f"it has no model_type; known are {known}"
    near = difflib.get_close_matches(str(given), FAMILIES, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"model_type {given!r} cannot be trained; known are {known}{hint}"


def _not_computed(config: dict[str, Any], family: Family) -> Iterator[str]:
    """Values that change the computation and that the trainer does not support."""
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        yield f"quantization_config ({method or 'unknown'}): quantized weights cannot be trained"
    architectures = config.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        yield f"architectures={_shown(architectures)}: only {family.architecture} can be trained"
    for name, values in family.computed.items():
        value = config.get(name)
        if value is not None and value not in values:
            implemented = " or ".join(_shown(v) for v in values)
            yield (
                f"{name}={_shown(value)} is not implemented for {family.model_type}, only "
                f"{implemented}"
            )
    window: Any = config.get("sliding_window")
    longest: Any = config.get("max_position_embeddings")
    numbers = is_number(window) and is_number(longest)
    if family.window == "none" and numbers and 0 < window < longest:
        yield (
            f"sliding_window={_shown(window)} is not implemented for {family.model_type}: vLLM "
            "would apply it, and transformers does not"
        )


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)
