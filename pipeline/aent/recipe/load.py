"""From a YAML file and overrides to a Recipe, and back; every fault is one sentence.

The YAML read here is the core schema of YAML 1.2, not PyYAML's 1.1: ``2e-5`` is a number, only
``true`` and ``false`` are truth values, ``010`` is ten and a date stays text. A duplicate key is a
fault. Types are strict: a truth value for a number, or a number for a text, is a wrong type.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from aent.recipe import controls, graders
from aent.recipe.earlier import RENAMED, translated
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.recipe.sources import SourceSection

MAX_FAULTS = 5  # reported at once
Scalar = str | int | float | bool | None


class RecipeError(ValueError):
    """A recipe that cannot be loaded: one line per fault, each naming its source and field."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at ``path`` and apply overrides ``key.sub=value``, left to right.

    An override's value is YAML and replaces what the file says: a whole section, where the key
    names one.

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
    """The resolved recipe as YAML, every field written out; ``load`` makes an equal one of it, but
    for the password of ``tracking.uri``, which is hidden."""
    return yaml.dump(_shown_values(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


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


# -- YAML ------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars; a duplicate key is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"duplicate key {key.value!r}", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first
        )
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def parse_value(text: str, source: str) -> Any:
    """The YAML value of ``text``; RecipeError with the line where it is malformed.

    ``source`` is a file's path, or an override as it was given.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark and source[:8] != "override" else ""
        what = error.problem or error.context or "malformed"
        if what.startswith("but "):  # PyYAML's other half of the sentence
            what = f"{error.context} {what}"
        raise RecipeError(f"{source}: {line}not valid YAML: {_one_line(what)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: not valid YAML: {_one_line(str(error))}") from error


def _read(path: Path) -> dict[str, Any]:
    """The recipe in a file, which may be written as changes of another one.

    ``base`` names that other file, beside this one, which stands for itself (one level only);
    ``change`` has what would be overrides on the command line, dotted keys and their values.
    """
    data = _mapping(path)
    if "base" not in data:
        return data
    base, change = data["base"], data.get("change", {})
    others = sorted(str(key) for key in data if key not in ("base", "change"))
    if others:
        raise RecipeError(f"{path}: beside base only change may stand, not {', '.join(others)}")
    if not isinstance(base, str) or not isinstance(change, dict):
        raise RecipeError(f"{path}: base must be a file's name and change a mapping")
    try:
        whole = _mapping(path.parent / base)
    except RecipeError as error:
        raise RecipeError(f"{path}: base: {error}") from error
    if "base" in whole:
        raise RecipeError(f"{path}: base: {base} has a base itself; one level is all there is")
    for key, value in change.items():
        _check_key(str(key), f"{path}: change")
        _put(whole, str(key), value)
    return whole


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
        raise RecipeError(f"{path}: a recipe is a mapping (key: value lines), not {_shown(data)}")
    return data


def _unrepresentable(data: Any) -> Iterator[tuple[str, str]]:
    """(path, fault) of keys that are no text, numbers that are not finite, and loops."""
    open_ids: set[int] = set()

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, float) and not math.isfinite(value):
            yield prefix, f"{prefix} must be a finite number, got {value}"
        elif isinstance(value, set | bytes):
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
                yield prefix, f"{prefix or 'the recipe'} has a key that is no text: {_shown(key)}"
        open_ids.discard(id(value))

    yield from walk("", data)


# -- overrides and names ---------------------------------------------------------------------------


def _apply(data: dict[str, Any], override: str) -> str:
    """Set one override in ``data``; return its dotted key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {_one_line(override)}: expected key=value")
    said = f"override {_one_line(override)}"
    _check_key(key, said)
    _put(data, key, parse_value(text, said))
    return key


def _check_key(key: str, said: str) -> None:
    """RecipeError, beginning with what was ``said``, for a dotted key that is not in the schema."""
    parts = key.split(".")
    section: type[BaseModel] | None = Recipe
    for depth, part in enumerate(parts):
        if section is None or part not in section.model_fields:
            hint = _nearest(".".join(parts[:depth]), part)
            raise RecipeError(f"{said}: unknown key {key}{hint}")
        if parts[: depth + 1] == ["task", "config"]:  # free below
            break
        section = _section(section, part)


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value under a dotted key, in place of whatever stands there."""
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


# lists whose items are told apart by their kind
_LISTS: dict[str, dict[str, Any]] = {
    "entropy_controls": controls.KINDS,
    "task.graders": graders.KINDS,
}


def _nearest(parent: str, name: str) -> str:
    """A hint: what a field of an earlier version is called now, or the nearest key beside the
    unknown one, else anywhere in the schema.

    In a list of kinds, where ``parent`` ends with the kind, beside is all there is.
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


# -- sentences -------------------------------------------------------------------------------------

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
    got = f", got {_shown(fault.get('input'))}"
    if kind == "extra_forbidden":
        parent, _, name = where.rpartition(".")
        return where, f"unknown key {where}{_nearest(parent, name)}"
    if kind == "missing":
        return where, f"{where} is missing and has no default"
    if kind in _EXPECTED:
        return where, f"{where} must be {_EXPECTED[kind]}{got}"
    if kind in _LIMITS:
        name, sign = _LIMITS[kind]
        return where, f"{where} must be {sign} {context[name]:g}{got}"
    if kind == "literal_error":
        return where, f"{where} must be {context['expected']}{got}"
    if kind == "union_tag_not_found":
        return where, f"{where}.kind is missing and has no default"
    if kind == "union_tag_invalid":
        where, got = f"{where}.kind", f", got {_shown(context['tag'])}"
        is_control = where.startswith("entropy_controls")
        if is_control and (kinds := controls.kinds_of_method(context["tag"])):
            said = f"{where}: {_shown(context['tag'])} is the name of a method"
            return where, f"{said}; the kinds of its parts: {', '.join(kinds)} (docs/algorithms.md)"
        return where, f"{where} must be one of {context['expected_tags']}{got}"
    if kind == "string_pattern_mismatch":
        return where, f"{where} must match {context['pattern']}{got}"
    return where, f"{where}: {_one_line(fault['msg'])}{got}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return _one_line(json.dumps(value, ensure_ascii=False, default=repr))


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."
