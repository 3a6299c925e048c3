"""YAML as recipes have it: the core schema of YAML 1.2, not PyYAML's 1.1.

``2e-5`` is a number, only ``true`` and ``false`` are truth values, ``010`` is ten and a date stays
text. A duplicate key is a fault.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml


class RecipeError(ValueError):
    """A recipe that cannot be loaded: one line per fault, each naming its source and field."""


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

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        """Escapes write texts that no file, path or tracker can hold: refused here, by line."""
        text = str(super().construct_scalar(node))
        fault = "a NUL character (\\0)" if "\0" in text else ""
        try:  # JSON's two escapes of one character become that character
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            fault = "half a character (a lone surrogate)"
        if fault:
            what = f"{text!a} has {fault}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return text


class Dumper(yaml.SafeDumper):
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
    for _class in (_Loader, Dumper):
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
        raise RecipeError(f"{source}: {line}not valid YAML: {one_line(what)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: not valid YAML: {one_line(str(error))}") from error


def shown(value: Any) -> str:
    """A value as a sentence about it shows it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return one_line(json.dumps(value, ensure_ascii=False, default=repr))


def one_line(text: str) -> str:
    """The text in one line of 120 characters at most."""
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."
