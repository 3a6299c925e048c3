"""One table and one JSON file of everything that was checked so far, and why the rest was not."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table. ``measured``, ``allowed``: numbers by name, units in the name."""

    section: str
    what: str
    measured: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)  # upper bounds, by the same names
    passed: bool | None = None  # None: measured only, or left out
    note: str = ""


def bounded(section: str, what: str, measured: dict[str, float], allowed: dict[str, float]) -> Row:
    """A row that has passed if every number is at most what it is allowed (a NaN is not)."""
    passed = all(measured[name] <= limit for name, limit in allowed.items())
    return Row(section, what, measured, allowed, passed)


def text_of(rows: list[Row], facts: dict[str, Any]) -> str:
    """The report as Markdown: the machine, one table, one sentence."""
    lines = [f"# gpu-check: {facts['device']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "device"]
    lines += ["", "| section | what | measured | allowed | result |", "|---|---|---|---|---|"]
    for row in rows:
        result = {True: "passed", False: "**failed**", None: ""}[row.passed]
        result = ": ".join(part for part in (result, row.note) if part).replace("|", "/")
        cells = (row.section, row.what, _numbers(row.measured), _numbers(row.allowed), result)
        lines.append(f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |")
    return "\n".join([*lines, "", verdict(rows), ""])


def verdict(rows: list[Row]) -> str:
    """How many checks passed and failed, and which failed."""
    failed = [f"{row.section}: {row.what}" for row in rows if row.passed is False]
    count = sum(row.passed is not None for row in rows)
    if not failed:
        return f"All {count} checks passed."
    return f"{len(failed)} of {count} checks failed: {'; '.join(failed)}."


def write(folder: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    """Write gpu-check.md and gpu-check.json, each complete or absent. In the JSON a number that is
    NaN or infinite is a string."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "rows": [_plain(asdict(row)) for row in rows]}
    texts = {"md": text_of(rows, facts), "json": json.dumps(content, indent=1, allow_nan=False)}
    for ending, text in texts.items():
        new = folder / f"gpu-check.{ending}.new"
        new.write_text(text)
        os.replace(new, folder / f"gpu-check.{ending}")


def _numbers(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if finite else str(value)
