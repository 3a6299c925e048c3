"""The schema's dotted names: which there are, which one was meant, setting the value of one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from aent.recipe import controls, graders
from aent.recipe.earlier import RENAMED
from aent.recipe.schema import Recipe
from aent.recipe.sources import SourceSection
from aent.recipe.yaml_text import RecipeError


def check_key(key: str, said: str) -> None:
    """RecipeError, beginning with what was ``said``, for a dotted key that is not in the schema."""
    parts = key.split(".")
    section: type[BaseModel] | None = Recipe
    for depth, part in enumerate(parts):
        if section is None or part not in section.model_fields:
            hint = nearest(".".join(parts[:depth]), part)
            raise RecipeError(f"{said}: unknown key {key}{hint}")
        if get_origin(section.model_fields[part].annotation) is dict:  # its keys are free
            break
        section = _section(section, part)


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value under a dotted key, in place of the present one."""
    *sections, last = key.split(".")
    for part in sections:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    data[last] = value


def _section(owner: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The section that a field of ``owner`` holds (or may hold), None if it holds a value."""
    kind = owner.model_fields[field].annotation
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def known_keys(owner: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted name of the schema, sections included."""
    for field in owner.model_fields:
        yield prefix + field
        inner = _section(owner, field)
        if inner:
            yield from known_keys(inner, f"{prefix}{field}.")


# lists whose items differ by kind
_LISTS: dict[str, dict[str, Any]] = {
    "entropy_controls": controls.KINDS,
    "task.graders": graders.KINDS,
}


def nearest(parent: str, name: str) -> str:
    """A hint: what a field of an earlier version is called now, or the nearest key beside the
    unknown one, else anywhere in the schema.

    In a list of kinds, whose ``parent`` ends with the kind, only keys beside it are known.
    """
    if f"{parent}.{name}" in RENAMED:
        return f" (it is {RENAMED[f'{parent}.{name}']})"
    known = list(known_keys())
    # a source of a mixture has graders as the task has, and columns
    within = re.sub(r"^task\.sources\[\d+\](?=\.graders)", "task", parent)
    if within == parent and parent.startswith("task.sources["):
        known = [f"{parent.partition(']')[0]}].{key}" for key in known_keys(SourceSection)]
    for place, kinds in _LISTS.items():
        if within.startswith(f"{place}["):
            section = kinds[parent.rpartition(".")[2]]
            known = [f"{parent}.{field}" for field in section.model_fields]
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    everywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for candidates in (beside, everywhere):
        found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
        if found:
            return f" (nearest known: {candidates[found[0]]})"
    return f" (known there: {', '.join(beside)})" if beside else ""
