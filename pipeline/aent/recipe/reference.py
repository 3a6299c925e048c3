"""The reference of a recipe's fields, generated from the schema, for people and editors.

``docs/recipe.md`` is ``markdown()``, ``recipes/recipe.schema.json`` is ``json_schema()``;
``tests/recipe/test_reference.py`` checks both. A field's description is the docstring below it.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from aent.recipe.schema import Recipe
from aent.recipe.section import Section

TYPES = {str: "text", int: "integer", float: "number", bool: "true or false"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
RESUME = {"same": "no", "warn": "with a warning", "free": "yes"}
HEAD = """# The fields of a recipe

Every section and field, with its type and default. `aent recipe --markdown` writes this page; in a
terminal, `aent recipe rollout.engine` prints one section. Any field can be set on the command line
as `section.field=value`. A recipe's first line names `recipes/recipe.schema.json`, by which editors
complete and check it. *On resume* says if the field may change when a run continues from a
checkpoint.
"""


@dataclass(frozen=True)
class Entry:
    """One field."""

    name: str
    type: str
    default: str
    text: str
    resume: str


@dataclass(frozen=True)
class Part:
    """One section: its path in a recipe, and its fields."""

    path: str  # dotted; of an element of a list: graders[python]
    text: str
    entries: tuple[Entry, ...]


def parts(section: type[Section] = Recipe, path: str = "") -> Iterator[Part]:
    """The section, then the sections inside it, in order."""
    entries = (_entry(section, name, field) for name, field in section.model_fields.items())
    yield Part(path, cleandoc(section.__doc__ or ""), tuple(entries))
    for name, field in section.model_fields.items():
        inner = f"{path}.{name}".lstrip(".")
        for member in _sections(field.annotation):
            kind = member.model_fields.get("kind")
            listed = kind is not None and get_origin(field.annotation) is tuple
            listed = listed and not isinstance(get_args(field.annotation)[0], type)  # several kinds
            label = f"{inner}[{get_args(kind.annotation)[0]}]" if listed and kind else inner
            yield from parts(member, label)


def markdown() -> str:
    """``docs/recipe.md``."""
    pages = [HEAD]
    for part in parts():
        rows = [
            f"| `{e.name}` | {_cell(e.type)} | {_cell(e.default)} | {_cell(e.text)} | {e.resume} |"
            for e in part.entries
        ]
        title = f"`{part.path}`" if part.path else "Top level"
        head = "| field | type | default | meaning | on resume |\n|---|---|---|---|---|"
        pages.append("\n".join([f"## {title}\n\n{part.text}\n", head, *rows]) + "\n")
    return "\n".join(pages)


def json_schema() -> str:
    """A JSON schema of recipe files: full recipes, and changes of another one (``load``)."""
    whole = Recipe.model_json_schema()
    definitions = whole.pop("$defs")
    of_changes = {
        "type": "object",
        "properties": {
            "base": {
                "type": "string",
                "description": "The recipe that is changed, relative to this file.",
            },
            "change": {"type": "object", "description": "Dotted keys and their new values."},
        },
        "required": ["base"],
        "additionalProperties": False,
    }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "aent recipe",
        "anyOf": [whole, of_changes],
        "$defs": definitions,
    }
    return json.dumps(schema, indent=1) + "\n"


def _entry(section: type[Section], name: str, field: FieldInfo) -> Entry:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    inside = bool(list(_sections(field.annotation))) and get_origin(field.annotation) is not tuple
    return Entry(
        name,
        "section" if inside else ", ".join([_type(field.annotation), *_bounds(field)]),
        "" if inside else _default(field),
        " ".join((field.description or "").split()),
        "" if inside else RESUME[str(extra.get("resume", section.RESUME))],
    )


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """Every section that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from _sections(inner)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    if origin is Annotated:
        return "sections, each with a kind" if list(_sections(annotation)) else _type(arguments[0])
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            inner = _type(arguments[0])
            return f"list of {inner}" + ("s" if arguments[0] in (str, int, float) else "")
        return f"list of {len(arguments)} {_type(arguments[0])}s"
    return "mapping" if origin is dict else TYPES.get(annotation, annotation.__name__)


def _bounds(field: FieldInfo) -> Iterator[str]:
    for constraint in field.metadata:
        for name, words in BOUNDS.items():
            if (bound := getattr(constraint, name, None)) is not None:
                yield f"{words} {bound:.10g}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        return ", ".join(str(getattr(each, "kind", "")) for each in value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return "{}" if value == {} else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
