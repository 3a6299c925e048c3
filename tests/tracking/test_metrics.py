"""The table of metrics: the page made of it, and the names that recorded runs and the code have."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aent.tracking import metrics
from e2e.golden.replay import EXPECTED

ROOT = Path(__file__).parents[2]
GROUPS = {metric.names.split("/")[0] for metric in metrics.METRICS} - {"system", "suite"}


def names_of(metric: metrics.Metric) -> list[str]:
    return metric.names.split(", ")


def literals(tree: ast.AST) -> Iterator[str]:
    """Every text in the code; of an f-string its constant parts, ``*`` between them."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
              for part in node.values}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "*" for v in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield str(node.value)


def names_in_code() -> set[str]:
    """Texts of the package that look like a metric's name."""
    name = re.compile(rf"({'|'.join(GROUPS)})(/[A-Za-z0-9_*]+)+")
    folder = ROOT / "pipeline/aent"
    files = [f for f in folder.rglob("*.py") if f != folder / "tracking/metrics.py"]
    found = {text for file in files for text in literals(ast.parse(file.read_text()))}
    return {text for text in found if name.fullmatch(text)} - {"tokens/s"}  # a table's heading


def has_row(name: str) -> bool:
    """Whether a row matches; ``*`` matches anything, in the name or in the row."""
    pattern = re.escape(name).replace(re.escape("*"), ".+")
    rows = [
        own.replace("...", "x") for metric in metrics.METRICS for own in metric.names.split(", ")
    ]
    return any(metric.matches(name.replace("*", "x")) for metric in metrics.METRICS) or any(
        re.fullmatch(pattern, row) for row in rows
    )


def test_the_page_is_made_of_the_table() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == metrics.markdown(), (
        "run: aent metrics --markdown > docs/metrics.md"
    )


def test_every_metric_of_the_recorded_runs_has_a_row() -> None:
    recorded = json.loads(EXPECTED.read_text())["cases"].values()
    names = {name for case in recorded for name in case["series"]}
    assert len(names) > 30
    assert [n for n in sorted(names) if not any(m.matches(n) for m in metrics.METRICS)] == []


def test_every_metric_that_the_code_names_has_a_row() -> None:
    names = names_in_code()
    assert {"reward/mean", "time/*", "engine/kv_use", "curriculum/known"} <= names
    assert [name for name in sorted(names) if not has_row(name)] == []


def test_every_row_without_a_pattern_is_named_in_the_code() -> None:
    """A metric that nothing records any more has no row. Names made of two texts are left out."""
    groups = ("reward", "response", "policy", "update", "engine", "tokens", "staleness")
    names = [own for metric in metrics.METRICS for own in names_of(metric)]
    plain = {own for own in names if own.split("/")[0] in groups and own == own.lower()}
    assert len(plain) > 30
    assert sorted(plain - names_in_code()) == []


def test_a_name_has_one_row() -> None:
    names = [own for metric in metrics.METRICS for own in names_of(metric)]
    assert len(names) == len(set(names))
    assert [m.names for m in metrics.find("grader/python/mean")] == ["grader/NAME/mean"]
    assert [m.names for m in metrics.find("policy/entropy")] == ["policy/entropy"]
    assert len(metrics.find("controller/")) > 5
    assert metrics.find("no/such") == []


@pytest.mark.parametrize("name", ["policy/entropyx", "time/a/b", "grader/mean"])
def test_a_pattern_matches_whole_parts(name: str) -> None:
    assert not any(metric.matches(name) for metric in metrics.METRICS)
