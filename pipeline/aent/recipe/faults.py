"""Sentences for what pydantic finds wrong with a recipe's fields."""

from __future__ import annotations

from typing import Any

from aent.recipe import controls
from aent.recipe.keys import nearest
from aent.recipe.yaml_text import one_line, shown

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section (key: value lines)",
}
_LIMITS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


def sentence(fault: dict[str, Any]) -> tuple[str, str]:
    """(dotted path, sentence) of one of pydantic's errors, as ``ValidationError.errors`` has it."""
    where = ""
    for part in fault["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
    kind, context = fault["type"], fault.get("ctx", {})
    got = f", got {shown(fault.get('input'))}"
    if kind == "extra_forbidden":
        parent, _, name = where.rpartition(".")
        return where, f"unknown key {where}{nearest(parent, name)}"
    if kind == "missing":
        return where, f"{where} is missing and has no default"
    if kind in _EXPECTED:
        return where, f"{where} must be {_EXPECTED[kind]}{got}"
    if kind in _LIMITS:
        name, sign = _LIMITS[kind]
        return where, f"{where} must be {sign} {context[name]:.10g}{got}"
    if kind == "literal_error":
        return where, f"{where} must be {context['expected']}{got}"
    if kind == "union_tag_not_found":
        return where, f"{where}.kind is missing and has no default"
    if kind == "union_tag_invalid":
        where, got = f"{where}.kind", f", got {shown(context['tag'])}"
        is_control = where.startswith("entropy_controls")
        if is_control and (kinds := controls.kinds_of_method(context["tag"])):
            said = f"{where}: {shown(context['tag'])} is the name of a method"
            return where, f"{said}; the kinds of its parts: {', '.join(kinds)} (docs/algorithms.md)"
        return where, f"{where} must be one of {context['expected_tags']}{got}"
    if kind == "string_pattern_mismatch":
        return where, f"{where} must match {context['pattern']}{got}"
    return where, f"{where}: {one_line(fault['msg'])}{got}"
