"""What the docs list is what a run has."""

import json
import re
from pathlib import Path

from e2e.golden.replay import EXPECTED

METRICS = Path(__file__).parents[1] / "docs/metrics.md"


def documented() -> list[re.Pattern[str]]:
    """The names in the table's first column; capitals stand for any word, ... for anything."""
    rows = [line.split("|")[1] for line in METRICS.read_text().splitlines() if line[:3] == "| `"]
    names = [name for row in rows for name in re.findall(r"`([^`]+/[^`]+)`", row)]
    patterns = (re.escape(name).replace(re.escape("..."), ".+") for name in names)
    return [re.compile(re.sub(r"[A-Z]+", "[^/]+", pattern)) for pattern in patterns]


def test_every_metric_of_the_recorded_runs_is_in_the_table() -> None:
    patterns = documented()
    recorded = json.loads(EXPECTED.read_text())["cases"].values()
    names = {name for case in recorded for name in case["series"]}
    assert len(names) > 30
    assert [n for n in sorted(names) if not any(p.fullmatch(n) for p in patterns)] == []
