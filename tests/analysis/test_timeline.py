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
from aent.runtime.timeline import ENGINE, JUDGES, Timeline
from aent.tracking import journal
from aent.tracking.journal import Point
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
        # two at once; the third begins when the first has ended
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


def assert_valid(found: dict[str, Any]) -> None:
    """As the Trace Event Format has it: what a viewer needs of each kind of event; the events of a
    row lie within or behind one another, to the microsecond."""
    json.loads(json.dumps(found, allow_nan=False))
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    named = {(e["pid"], e["tid"]) for e in found["traceEvents"] if e["name"] == "thread_name"}
    for event in found["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            row = event["pid"], event["tid"]
            assert row in named
            rows.setdefault(row, []).append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert all(isinstance(value, float) for value in event["args"].values())
        else:
            assert event["ph"] == "M"
    for spans in rows.values():
        around: list[float] = []  # ends of the events around the next one
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while around and around[-1] <= begin + 1:
                around.pop()
            assert not around or end <= around[-1] + 1
            around.append(end)


def test_engines_judges_and_machines_are_processes_of_their_own(tmp_path: Path) -> None:
    collected = Timeline(timeline.file_of(tmp_path, 0))
    for url in ("http://a:1", "http://b:2"):
        collected.add("request", 10.0, f"{ENGINE}{url}", tokens=3)
    collected.add("last_number", 11.0, JUDGES)
    with collected.span("sample", step=0):
        pass
    collected.write()
    points = [
        Point(0, 12_000, "system/n1/cpu_utilization_percentage", 50.0),
        Point(0, 12_000, "system/n1/system_memory_usage_megabytes", 9.0),
        Point(0, 12_000, "reward/mean", 1.0),
    ]
    journal.append(tmp_path / "journal.jsonl", points)
    found = trace(tmp_path)
    assert_valid(found)
    names = {
        e["pid"]: e["args"]["name"] for e in found["traceEvents"] if e["name"] == "process_name"
    }
    assert set(names.values()) == {
        "rank 0", "engine http://a:1", "engine http://b:2", "judges", "machine n1",
    }  # fmt: skip
    assert len(names) == 5
    assert names[0] == "rank 0"
    drawn = {names[e["pid"]]: e["name"] for e in found["traceEvents"] if e["ph"] in "XC"}
    assert drawn == {
        "rank 0": "sample",
        "engine http://a:1": "request",
        "engine http://b:2": "request",
        "judges": "last_number",
        "machine n1": "cpu_utilization_percentage",
    }
    (counter,) = [e for e in found["traceEvents"] if e["ph"] == "C"]
    assert (counter["ts"], counter["args"]) == (12e6, {"percent": 50.0})


def test_of_many_events_of_a_name_an_even_part_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "LIMIT", 3)
    collected = Timeline(timeline.file_of(tmp_path, 0))
    for number in range(9):
        with collected.span("request", "here", number=number):
            pass
    with collected.span("train"):
        pass
    collected.write()
    with collected.span("request", number=9):
        pass
    collected.write()
    drawn = [e for e in trace(tmp_path)["traceEvents"] if e["ph"] == "X"]
    # evenly, so that late ones are there too
    assert [e["args"]["number"] for e in drawn if e["name"] == "request"] == [0, 4, 8, 9]
    (told,) = {e["name"] for e in drawn} - {"request", "train"}
    assert_names(told, 9, "request", 4)


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
