"""A report as one HTML page without outside resources, and as Markdown with charts beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from aent.compare import charts
from aent.compare.report import Report
from aent.compare.tables import Table
from aent.tracking.pages import fill, script_data

PAGE, MARKDOWN, CHARTS = "report.html", "report.md", "charts"
TEMPLATE = Path(__file__).with_name("page.html")
NONE = "Nothing."


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write both into ``folder``; return (page, Markdown)."""
    colour = charts.colours(report.arms)
    (folder / CHARTS).mkdir(parents=True, exist_ok=True)
    for chart in report.charts:
        picture = charts.svg(chart, colour, legend=True)
        (folder / CHARTS / f"{chart.name}.svg").write_text(picture + "\n", encoding="utf-8")
    page, text = folder / PAGE, folder / MARKDOWN
    page.write_text(html(report), encoding="utf-8")
    text.write_text(markdown(report), encoding="utf-8")
    return page, text


def html(report: Report) -> str:
    """The page, with the curves' values as JSON in its element ``data``."""
    colour = charts.colours(report.arms)
    arms = [
        f'<label><input type="checkbox" value="{escape(arm)}" checked>'
        f'<i style="background:{colour[arm]}"></i>{escape(arm)}</label>'
        for arm in report.arms
    ]
    figures = [
        f'<figure data-chart="{chart.name}">{charts.svg(chart, colour, legend=False)}'
        "<figcaption></figcaption></figure>"
        for chart in report.charts
    ]
    parts = {
        "title": escape(report.title),
        "facts": "\n".join(f"<p>{escape(fact)}</p>" for fact in report.facts),
        "arms": "\n".join(arms),
        "charts": "\n".join(figures),
        "tables": "\n".join(map(_html_table, report.tables)),
        "concluded": _html_list(report.concluded),
        "not_concluded": _html_list(report.not_concluded),
        "data": script_data(data(report)),
    }
    return fill(TEMPLATE, parts)


def data(report: Report) -> dict[str, Any]:
    """Arms and curves for JSON: six digits, null for NaN."""
    return {
        "arms": report.arms,
        "charts": {
            chart.name: {
                "title": chart.title,
                "x_label": chart.x_label,
                "curves": {
                    arm: {key: [_number(v) for v in values] for key, values in asdict(c).items()}
                    for arm, c in chart.curves.items()
                },
            }
            for chart in report.charts
        },
    }


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _html_list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(s)}</li>" for s in sentences or (NONE,))
    return f"<ul>{items}</ul>"


def _html_table(table: Table) -> str:
    def row(cells: Iterable[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(c)}</{kind}>" for c in cells) + "</tr>"

    rows = [row(table.head, "th"), *(row(cells, "td") for cells in table.rows)]
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="table"><table>'
        + "\n".join(rows)
        + f"</table></div>\n{note}"
    )


def markdown(report: Report) -> str:
    """The same report as Markdown; its charts are files beside it."""
    return "\n\n".join(_markdown(report)) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    yield f"# {report.title}"
    yield from report.facts
    for chart in report.charts:
        yield f"![{chart.title}]({CHARTS}/{chart.name}.svg)"
    for table in report.tables:
        yield f"## {table.title}"
        lines = [table.head, ["---"] * len(table.head), *table.rows]
        yield "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines)
        if table.note:
            yield table.note
    for title, sentences in (
        ("What can be concluded", report.concluded),
        ("What cannot", report.not_concluded),
    ):
        yield f"## {title}"
        yield "\n".join(f"- {sentence}" for sentence in sentences or (NONE,))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
