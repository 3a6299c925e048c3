"""A model's config.json, read without guessing.

A configuration that no record of ``aent.models.families`` covers is refused, each reason being one
sentence that names the field.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

from aent.models.decoder import ModelFacts
from aent.models.families import FAMILIES, ROPES, Family


class ModelError(ValueError):
    """A model that cannot be trained; ``faults`` are sentences, each naming a file and a field."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def read(config: Any, where: str) -> ModelFacts:
    """Facts from the content of a config.json; ``where`` names it in the sentences of ModelError.

    Refused is what no record covers. A field that transformers' class of this model_type does not
    have is not read, as transformers does not read it either.
    """
    if not isinstance(config, dict):
        raise ModelError([f"{where} is not a JSON object"])
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ModelError([f"{where}: {_unknown_type(config)}"])
    faults = [*_not_computed(config, family)]
    sizes: dict[str, int] = {}

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
    if not faults and heads % sizes["num_key_value_heads"]:
        groups = sizes["num_key_value_heads"]
        faults.append(f"num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    if not faults and "head_dim" not in config and family.head_dim is None and hidden % heads:
        faults.append(f"hidden_size={hidden} is no multiple of num_attention_heads={heads}")
    if not faults and sizes["head_dim"] % 2:
        faults.append(f"head_dim={sizes['head_dim']} is odd: it cannot be rotated in two halves")
    rope = rope_parameters(config)
    faults += _rope_faults(rope, family)
    window = None if faults else _window(config, family, sizes["num_hidden_layers"], faults)
    if faults:
        raise ModelError([f"{where}: {fault}" for fault in faults])
    return ModelFacts(
        family=family,
        layers=sizes["num_hidden_layers"],
        hidden=hidden,
        ffn=sizes["intermediate_size"],
        heads=heads,
        kv_groups=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        vocab=sizes["vocab_size"],
        max_positions=sizes["max_position_embeddings"],
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=_flag(config, family, "attention_bias"),
        mlp_bias=_flag(config, family, "mlp_bias"),
        window=window,
        rope=rope,
    )


def _flag(config: dict[str, Any], family: Family, name: str) -> bool:
    """Whether an option of the family is on; transformers does not read what it does not have."""
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
    """Values that change the computation and that the trainer does not compute."""
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        yield f"quantization_config ({method or 'unknown'}): quantized weights cannot be trained"
    architectures = config.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        yield f"architectures={_shown(architectures)}: trained is {family.architecture} only"
    for name, values in family.computed.items():
        value = config.get(name)
        if value is not None and value not in values:
            implemented = " or ".join(_shown(v) for v in values)
            yield (
                f"{name}={_shown(value)} is not implemented for {family.model_type}, only "
                f"{implemented}"
            )


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding of a config.json, in the form of transformers 5 (rope_parameters) or 4
    (rope_theta and rope_scaling), as the former."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        return {"rope_type": given}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **given}
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    rope["rope_type"] = given.get("rope_type", given.get("type", "default"))
    rope.pop("type", None)
    if rope["partial_rotary_factor"] is None:  # null: as if it were not there
        del rope["partial_rotary_factor"]
    return rope


def _rope_faults(rope: dict[str, Any], family: Family) -> Iterator[str]:
    kind = rope["rope_type"]
    if kind not in family.ropes:
        known = ", ".join(family.ropes)
        yield f"rope_type {kind!r} is not implemented for {family.model_type}, only {known}"
        return
    if not _is_number(rope["rope_theta"]) or rope["rope_theta"] <= 1:
        yield f"rope_theta must be a number above 1, got {rope['rope_theta']!r}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield (
            f"partial_rotary_factor={rope['partial_rotary_factor']} is not implemented: whole "
            "heads are rotated"
        )
    needed, others = ROPES[kind]
    for name in needed:
        if not _is_number(rope.get(name)) or rope[name] <= 0:
            yield f"{name} of rope_type {kind} must be a number above 0, got {rope.get(name)!r}"
    for name in others:
        if rope.get(name) is not None and not _is_number(rope[name]) and name != "truncate":
            yield f"{name} of rope_type {kind} must be a number, got {rope[name]!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _window(config: dict[str, Any], family: Family, layers: int, faults: list[str]) -> int | None:
    """The sliding window of the layers that have one; None where every layer sees all tokens."""
    if family.window == "none":
        return None
    window = config.get("sliding_window", family.window_size)
    kinds = config.get("layer_types")
    if family.window == "all_layers":
        kinds = ["sliding_attention"]
    elif not config.get("use_sliding_window"):
        window = None
    if window is None and kinds is None:  # nothing else is read then
        return None
    if kinds is None:
        upper = config.get("max_window_layers", 28)
        if not isinstance(upper, int):
            faults.append(f"max_window_layers must be a whole number, got {upper!r}")
            return None
        kinds = ["full_attention", "sliding_attention"] if upper < layers else ["full_attention"]
    if not isinstance(kinds, list):
        faults.append(f"layer_types must be a list, got {kinds!r}")
        return None
    unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if unknown:
        faults.append(f"layer_types has {', '.join(unknown)}, which is not implemented")
    if window is None or "sliding_attention" not in kinds:
        return None
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        faults.append(f"sliding_window must be a positive whole number, got {window!r}")
    return window
