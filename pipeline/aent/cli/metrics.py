"""``aent metrics``: what each recorded number means."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from aent.cli.refusals import refuse

WIDTH = 100


def metrics(
    name: Annotated[
        str | None,
        typer.Argument(help="A metric, or how its name begins; default: the list of metrics."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the whole page docs/metrics.md.")
    ] = False,
) -> None:
    """Explain the metrics that a run records.

    Example: aent metrics policy/entropy
    """
    from aent.tracking import metrics as table

    if markdown:
        print(table.markdown(), end="")
        return
    if name is None:
        for metric in table.METRICS:
            print(f"{metric.names}  ({metric.unit})")
        return
    found = table.find(name)
    if not found:
        refuse([f"{name}: no run records such a metric (aent metrics lists them)"])
    for metric in found:
        print(f"{metric.names}  ({metric.unit}; {metric.when})")
        print(textwrap.fill(metric.meaning, WIDTH, initial_indent="    ", subsequent_indent="    "))
