"""The differences between two recipes, and whether a run may continue with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.recipe.section import Resume, Section


@dataclass(frozen=True)
class Change:
    """One field whose value differs between the run's recipe and the new one."""

    field: str  # dotted
    before: Any
    after: Any
    rule: Resume

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.before)} before, {_shown(self.after)} now"


def changes(before: Recipe, after: Recipe) -> list[Change]:
    """Every field that differs, in the schema's order, with its resume rule."""
    return list(_changes("", before, after))


def _changes(prefix: str, before: Section, after: Section) -> Iterator[Change]:
    for name in type(after).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, Section) and isinstance(new, Section):
            yield from _changes(f"{prefix}{name}.", old, new)
        elif _hidden(old) != _hidden(new):
            yield Change(prefix + name, old, new, rule_of(type(after), name))


def rule_of(section: type[Section], name: str) -> Resume:
    """The field's own mark, else its section's."""
    extra = section.model_fields[name].json_schema_extra
    return extra["resume"] if isinstance(extra, dict) else section.RESUME  # type: ignore[return-value]


def _hidden(value: Any) -> Any:
    """The value as stored in a run's folder: without a password."""
    return redacted(value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel | dict | tuple):
        return str(value)
    return "nothing" if value is None else f"{_hidden(value)}"
