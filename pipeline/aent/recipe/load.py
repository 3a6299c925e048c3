"""From a YAML file and overrides to a Recipe, and back; every fault is one sentence.

Types are strict: a truth value for a number, or a number for a text, is a wrong type. ``yaml_text``
says which YAML is read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from aent.recipe.earlier import translated
from aent.recipe.faults import sentence
from aent.recipe.keys import check_key, put
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.recipe.yaml_text import Dumper, RecipeError, one_line, parse_value, shown

MAX_FAULTS = 5  # reported at once
Scalar = str | int | float | bool | None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at ``path`` and apply overrides ``key.sub=value``, left to right.

    An override's value is YAML and replaces the file's: a whole section, if the key names
    one.

    Raises:
        RecipeError: with one line per fault; nothing is written in any case.
    """
    return resolve(_read(Path(path)), str(path), overrides)


def load_recorded(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run has kept, which an earlier version may have written; else as
    ``load``."""
    return resolve(translated(_mapping(Path(path))), str(path), overrides)


def resolve(data: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a mapping that came from ``source``; otherwise as ``load``."""
    sources: dict[str, str] = {}  # dotted path -> the override that set it
    faults = []
    for override in overrides:
        try:
            sources[_apply(data, override)] = override
        except RecipeError as error:
            faults.append(str(error))

    def named(dotted: str, fault: str) -> str:
        plain = re.sub(r"\[\d+\]", "", dotted)
        while plain and plain not in sources:
            plain = plain.rpartition(".")[0]
        return f"override {sources[plain]}: {fault}" if plain else f"{source}: {fault}"

    faults += [named(where, fault) for where, fault in _unrepresentable(data)]
    if not faults:
        try:
            return Recipe.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            faults = [named(*sentence(dict(fault))) for fault in error.errors(include_url=False)]
    more = len(faults) - MAX_FAULTS
    lines = faults[:MAX_FAULTS] + ([f"{source}: and {more} more"] if more > 0 else [])
    raise RecipeError("\n".join(lines))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field written out. ``load`` makes an equal recipe from it,
    except for the password of ``tracking.uri``, which is hidden."""
    return yaml.dump(_shown_values(recipe), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _shown_values(recipe: Recipe) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    if values["tracking"]["uri"] is not None:
        values["tracking"]["uri"] = redacted(values["tracking"]["uri"])
    return values


def flatten(recipe: Recipe) -> dict[str, Scalar]:
    """Every field under its dotted name, values as ``dump`` has them; lists and empty mappings as
    JSON text."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Scalar]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, json.dumps(value) if isinstance(value, list | dict) else value

    return dict(walk("", _shown_values(recipe)))


def _read(path: Path) -> dict[str, Any]:
    """The recipe in a file, which may be written as changes of another one.

    ``base`` names that other file, beside this one, which has no ``base`` of its own;
    ``change`` has what would be overrides on the command line, dotted keys and their values.
    """
    data = _mapping(path)
    if "base" not in data:
        return data
    base, change = data["base"], data.get("change", {})
    others = sorted(str(key) for key in data if key not in ("base", "change"))
    if others:
        raise RecipeError(f"{path}: beside base only change is allowed, not {', '.join(others)}")
    if not isinstance(base, str) or not isinstance(change, dict):
        raise RecipeError(f"{path}: base must be a file's name and change a mapping")
    try:
        whole = _mapping(path.parent / base)
    except RecipeError as error:
        raise RecipeError(f"{path}: base: {error}") from error
    if "base" in whole:
        raise RecipeError(f"{path}: base: {base} has a base itself; only one level is possible")
    for key, value in change.items():
        check_key(str(key), f"{path}: change")
        put(whole, str(key), value)
    return whole


def base_of(path: Path) -> Path | None:
    """The file that the recipe in ``path`` is written as changes of, if it is. Raises
    RecipeError."""
    base = _mapping(path).get("base")
    return path.parent / base if isinstance(base, str) else None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    data = parse_value(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping (key: value lines), not {shown(data)}")
    return data


def _unrepresentable(data: Any) -> Iterator[tuple[str, str]]:
    """(path, fault) of keys that are not text, numbers that are not finite, loops, and values that
    JSON has not."""
    open_ids: set[int] = set()

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, float) and not math.isfinite(value):
            yield prefix, f"{prefix} must be a finite number, got {value}"
        elif not isinstance(value, dict | list | Scalar):  # by a tag, such as !!timestamp
            yield prefix, f"{prefix} must not be a YAML {type(value).__name__}"
        if not isinstance(value, dict | list):
            return
        if id(value) in open_ids:
            yield prefix, f"{prefix} contains itself"
            return
        open_ids.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if isinstance(value, list):
                yield from walk(f"{prefix}[{key}]", inner)
            elif isinstance(key, str):
                yield from walk(f"{prefix}.{key}" if prefix else key, inner)
            else:
                yield prefix, f"{prefix or 'the recipe'} has a key that is not text: {shown(key)}"
        open_ids.discard(id(value))

    yield from walk("", data)


def _apply(data: dict[str, Any], override: str) -> str:
    """Set one override in ``data``; return its dotted key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {one_line(override)}: expected key=value")
    said = f"override {one_line(override)}"
    check_key(key, said)
    put(data, key, parse_value(text, said))
    return key
