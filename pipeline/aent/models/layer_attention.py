"""Each layer's attention window and rotation of positions, from a config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aent.models.families import ROPES, Family

FULL, SLIDING = "full_attention", "sliding_attention"
SWITCHED = ("upper_layers", "unrotated_layers")  # by use_sliding_window


@dataclass(frozen=True)
class LayerAttention:
    """One layer's."""

    window: int | None  # most tokens that a token attends to, itself included; None: all before it
    rope: int | None  # which of the model's rotary embeddings; None: positions are not rotated


def read_layers(
    config: dict[str, Any], family: Family, layers: int, faults: list[str]
) -> tuple[LayerAttention, ...]:
    """Each layer's, as transformers' class of this family reads config.json. Faults of the fields
    are added to ``faults``; the result is then meaningless."""
    rotated = _rotated(config, family, layers, faults)
    kinds = _kinds(config, family, rotated, faults)
    if faults:
        return ()
    window = stated_window(config, family)
    if not _is_size(window) and (window is not None or SLIDING in kinds):
        faults.append(f"sliding_window must be a positive whole number, got {window!r}")
    own = family.window_theta is not None
    return tuple(
        LayerAttention(
            window=window if kind == SLIDING else None,
            rope=(1 if own and kind == SLIDING else 0) if turned else None,
        )
        for kind, turned in zip(kinds, rotated)
    )


def stated_window(config: dict[str, Any], family: Family) -> Any:
    """The value of sliding_window, whether layers use it or not; None if it is switched off."""
    if family.window == "none":
        return None
    if family.window in SWITCHED and not config.get("use_sliding_window"):
        return None
    return config.get("sliding_window", family.window_size)


def _kinds(
    config: dict[str, Any], family: Family, rotated: list[bool], faults: list[str]
) -> list[str]:
    """full_attention or sliding_attention for each layer."""
    layers = len(rotated)
    if family.window in ("none", "all_layers"):
        return [FULL if stated_window(config, family) is None else SLIDING] * layers
    kinds = config.get("layer_types")
    if kinds is None:
        if stated_window(config, family) is None and family.window in SWITCHED:
            return [FULL] * layers  # nothing else is read then
        return _default_kinds(config, family, rotated, faults)
    if not isinstance(kinds, list):
        faults.append(f"layer_types must be a list, got {kinds!r}")
    elif unknown := sorted({str(kind) for kind in kinds} - {FULL, SLIDING}):
        faults.append(f"layer_types has {', '.join(unknown)}, which is not implemented")
    elif len(kinds) != layers:
        faults.append(f"layer_types has {len(kinds)} entries for num_hidden_layers={layers}")
    return kinds


def _default_kinds(
    config: dict[str, Any], family: Family, rotated: list[bool], faults: list[str]
) -> list[str]:
    """The kinds of the layers if there is no layer_types."""
    if family.window == "unrotated_layers":
        return [FULL if turned else SLIDING for turned in rotated]
    if family.window in ("alternating", "pattern"):
        n = config.get("sliding_window_pattern", 6) if family.window == "pattern" else 2
        if not _is_size(n):
            faults.append(f"sliding_window_pattern must be a positive number, got {n!r}")
            return []
        return [SLIDING if (i + 1) % n else FULL for i in range(len(rotated))]
    first = config.get("max_window_layers", 28)
    if not isinstance(first, int):
        faults.append(f"max_window_layers must be a whole number, got {first!r}")
        return []
    return [SLIDING if i >= first else FULL for i in range(len(rotated))]


def _rotated(config: dict[str, Any], family: Family, layers: int, faults: list[str]) -> list[bool]:
    """Which layers rotate positions."""
    if not family.unrotated_layers:
        return [True] * layers
    given = config.get("no_rope_layers")
    if given is None:
        interval = config.get("no_rope_layer_interval", 4)
        if not _is_size(interval):
            faults.append(f"no_rope_layer_interval must be a positive number, got {interval!r}")
            return [True] * layers
        return [(i + 1) % interval != 0 for i in range(layers)]
    whole = isinstance(given, list) and len(given) >= layers
    if not whole or any(turned not in (0, 1) for turned in given[:layers]):
        faults.append(f"no_rope_layers must be a 0 or 1 for each layer, got {json.dumps(given)}")
        return [True] * layers
    return [bool(turned) for turned in given[:layers]]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def read_ropes(config: dict[str, Any], family: Family) -> tuple[dict[str, Any], ...]:
    """The rotary embeddings of a config.json, in the form of transformers 5 (rope_parameters) or 4
    (rope_theta and rope_scaling), in the former; the second one is for layers with a window."""
    given = config.get("rope_parameters") or {}
    if family.window_theta is None or not isinstance(given, dict):
        return (_rope(config, config.get("rope_scaling") or given, family.theta),)
    scaling = config.get("rope_scaling") or {}
    whole = given.get(FULL) or {}
    local = {"rope_theta": config.get("rope_local_base_freq", family.window_theta)}
    return (
        _rope(config, {**whole, **scaling} if isinstance(scaling, dict) else scaling, family.theta),
        _rope(local, given.get(SLIDING) or {}, family.window_theta),
    )


def _rope(config: dict[str, Any], given: Any, theta: float) -> dict[str, Any]:
    if not isinstance(given, dict):
        return {"rope_type": given}
    rope = {"rope_theta": config.get("rope_theta", theta), **given}
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    rope["rope_type"] = given.get("rope_type", given.get("type", "default"))
    rope.pop("type", None)
    if rope["partial_rotary_factor"] is None:  # null counts as absent
        del rope["partial_rotary_factor"]
    if rope["rope_type"] == "longrope":  # as Phi3Config has it
        original = config.get("original_max_position_embeddings", 4096)
        rope["original_max_position_embeddings"] = original
    return rope


def rope_faults(rope: dict[str, Any], family: Family, pairs: int) -> Iterator[str]:
    """Why a rotary embedding with that many pairs per head is not supported."""
    kind = rope["rope_type"]
    if kind not in family.ropes:
        known = ", ".join(family.ropes)
        yield f"rope_type {kind!r} is not implemented for {family.model_type}, only {known}"
        return
    if not is_number(rope["rope_theta"]) or rope["rope_theta"] <= 1:
        yield f"rope_theta must be a number above 1, got {rope['rope_theta']!r}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield (
            f"partial_rotary_factor={rope['partial_rotary_factor']} is not implemented: whole "
            "heads are rotated"
        )
    needed, others = ROPES[kind]
    for name in needed:
        if name in ("short_factor", "long_factor"):
            if not _are_factors(rope.get(name), pairs):
                yield f"{name} of rope_type {kind} must be a list of {pairs} numbers above 0"
        elif not is_number(rope.get(name)) or rope[name] <= 0:
            yield f"{name} of rope_type {kind} must be a number above 0, got {rope.get(name)!r}"
    if kind == "longrope":  # vLLM and transformers treat these differently
        for name in ("factor", "attention_factor", "short_mscale", "long_mscale"):
            if rope.get(name) is not None:
                yield f"{name} of rope_type {kind} is not implemented"
    for name in others:
        if rope.get(name) is not None and not is_number(rope[name]) and name != "truncate":
            yield f"{name} of rope_type {kind} must be a number, got {rope[name]!r}"


def _are_factors(value: Any, pairs: int) -> bool:
    whole = isinstance(value, list) and len(value) == pairs
    return whole and all(is_number(factor) and factor > 0 for factor in value)


def is_number(value: Any) -> bool:
    """Whether JSON's value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
