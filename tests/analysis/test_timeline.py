"""The trace of a run's timeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aent.analysis.timeline import trace
from aent.cli.main import app
from aent.runtime import timeline
from aent.runtime.timeline import Timeline
from wording import assert_names


def rows_of(events: list[dict[str, Any]], pid: int) -> dict[int, list[str]]:
    """Names of the events in every row of a process."""
    found: dict[int, list[str]] = {}
    for event in events:
        if event["ph"] == "X" and event["pid"] == pid:
            found.setdefault(event["tid"], []).append(event["name"])
    return found


def test_events_lie_in_the_rows_of_their_tracks(tmp_path: Path) -> None:
    path = timeline.file_of(tmp_path, 1)
    path.parent.mkdir()
    events = [
        {"name": "sample", "begin": 10.0, "end": 14.0, "track": "phases", "step": 3},
        {"name": "inner", "begin": 11.0, "end": 12.0, "track": "phases"},
        # two at once, the third where the first has ended
        {"name": "a", "begin": 10.0, "end": 12.0, "track": "http://e", "tokens": 7},
        {"name": "b", "begin": 11.0, "end": 14.0, "track": "http://e"},
        {"name": "c", "begin": 12.5, "end": 13.0, "track": "http://e"},
    ]
    torn = '{"name": "sam'
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + torn)
    drawn = trace(tmp_path)["traceEvents"]
    rows = rows_of(drawn, pid=1)
    assert sorted(rows.values()) == [["a", "c"], ["b"], ["sample", "inner"]]
    names = {e["tid"]: e["args"]["name"] for e in drawn if e["name"] == "thread_name"}
    assert names == {tid: "phases" if "sample" in row else "http://e" for tid, row in rows.items()}
    (a,) = [e for e in drawn if e["name"] == "a"]
    assert (a["ts"], a["dur"], a["args"]) == (10.0e6, 2.0e6, {"tokens": 7})
    (process,) = [e for e in drawn if e["name"] == "process_name"]
    assert process["args"]["name"] == "rank 1"


def test_what_is_collected_is_written_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "LIMIT", 3)
    collected = Timeline(timeline.file_of(tmp_path, 0))
    for number in range(5):
        with collected.span(f"event {number}", "here", number=number):
            pass
    collected.write()
    with collected.span("later"):
        pass
    collected.write()
    drawn = [e for e in trace(tmp_path)["traceEvents"] if e["ph"] == "X"]
    names = [e["name"] for e in drawn]
    assert {"event 0", "event 1", "event 2", "later"} < set(names)
    assert len(names) == 5
    assert_names(" ".join(names), "2 events")


def test_a_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / timeline.FOLDER).write_text("a file in the way")
    collected = Timeline(timeline.file_of(tmp_path, 0))
    for _ in range(2):
        collected.add("x", 0.0, "phases")
        collected.write()
    (told,) = capsys.readouterr().err.splitlines()
    assert_names(told, timeline.file_of(tmp_path, 0))


def test_the_command_writes_the_trace_or_says_that_there_is_none(tmp_path: Path) -> None:
    collected = Timeline(timeline.file_of(tmp_path, 0))
    with collected.span("train", step=2):
        pass
    collected.write()
    done = CliRunner().invoke(app, ["timeline", str(tmp_path)])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "timeline.json").read_text())
    assert [e["args"] for e in written["traceEvents"] if e["name"] == "train"] == [{"step": 2}]
    refused = CliRunner().invoke(app, ["timeline", str(tmp_path / "none")])
    assert refused.exit_code == 2
    assert_names(refused.output, tmp_path / "none")
