"""``aent recipe``: the fields of a recipe."""

from __future__ import annotations

import difflib
import textwrap
from typing import Annotated

import typer

from aent.cli.refusals import refuse

WIDTH = 100


def recipe(
    section: Annotated[
        str | None,
        typer.Argument(help="A section, as rollout.engine; default: the list of sections."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the whole page docs/recipe.md.")
    ] = False,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print recipes/recipe.schema.json, for editors.")
    ] = False,
) -> None:
    """Describe the fields of a recipe.

    Example: aent recipe rollout.engine
    """
    from aent.recipe import reference

    if markdown or json_schema:
        print(reference.markdown() if markdown else reference.json_schema(), end="")
        return
    parts = {part.path: part for part in reference.parts()}
    if section is None:
        for part in parts.values():
            print(f"{part.path or '(top level)':<44}{part.text.splitlines()[0]}"[:WIDTH])
        return
    if section not in parts:
        near = difflib.get_close_matches(section, parts, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        refuse([f"{section}: there is no such section{hint} (aent recipe lists them)"])
    print(" ".join(parts[section].text.split()))
    for entry in parts[section].entries:
        kind = f"{entry.type}; default: {entry.default}" if entry.default else entry.type
        print(f"\n{entry.name}  ({kind})")
        print(textwrap.fill(entry.text, WIDTH, initial_indent="    ", subsequent_indent="    "))
