"""A run's timeline as a Chrome trace (https://ui.perfetto.dev opens it): what every rank did and
waited for, every request to its engines, every graded answer, and the load of its machines.

Format: Chrome's "Trace Event Format": complete events (``X``), counters (``C``) and names of
processes and rows. Times are from the clock of each process: those of several machines may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aent.runtime.timeline import ENGINE, FOLDER, JUDGES
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE
from aent.tracking.machines import SYSTEM

OTHERS = 1_000_000  # number of the first process that is not a rank
COUNTED = "utilization_percentage"  # end of the names of machine metrics that are drawn


def trace(run_dir: Path) -> dict[str, Any]:
    """The trace of everything in ``run_dir/timeline``; an incomplete last line is left out.

    Raises FileNotFoundError if there is nothing.
    """
    files = sorted(run_dir.glob(f"{FOLDER}/rank*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{run_dir} has no timeline: no file {FOLDER}/rank*.jsonl")
    processes: dict[str, int] = {}  # numbers of processes that are not ranks, by name
    by_process: dict[int, list[dict[str, Any]]] = {}
    for path in files:
        rank = int(path.stem.removeprefix("rank"))
        for event in _read(path):
            track, number = event["track"], rank
            if track == JUDGES or track.startswith(ENGINE):
                number = processes.setdefault(track, OTHERS + len(processes))
            by_process.setdefault(number, []).append(event)
    names = {number: name for name, number in processes.items()}
    events: list[dict[str, Any]] = []
    for number, found in sorted(by_process.items()):
        events.append(_name("process_name", names.get(number, f"rank {number}"), number))
        events += _drawn(found, number)
    events += _machines(run_dir / JOURNAL_FILE, OTHERS + len(processes))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a machine lost its power here
            continue


def _drawn(events: list[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    """Events of one process; each track has as many rows as it has events at the same time."""
    rows: dict[tuple[str, int], int] = {}  # (track, lane): number of the row
    ends: dict[str, list[float]] = {}  # for each lane of a track: when its last event ends
    for event in sorted(events, key=lambda e: (e["begin"], -e["end"])):
        facts = {k: v for k, v in event.items() if k not in ("name", "begin", "end", "track")}
        track, begin, end = event["track"], event["begin"], event["end"]
        lane = 0
        if track != "phases":  # phases are nested
            lanes = ends.setdefault(track, [])
            free = (i for i, busy_until in enumerate(lanes) if busy_until <= begin)
            lane = next(free, len(lanes))
            lanes[lane : lane + 1] = [end]
        if (track, lane) not in rows:
            rows[track, lane] = len(rows)
            yield _name("thread_name", track, number, rows[track, lane])
        yield {
            "name": event["name"],
            "ph": "X",
            "ts": begin * 1e6,
            "dur": max(end - begin, 0.0) * 1e6,  # a clock may be set back
            "pid": number,
            "tid": rows[track, lane],
            "args": facts,
        }


def _machines(path: Path, first: int) -> Iterator[dict[str, Any]]:
    """Load of processors and GPUs, from the run's journal."""
    numbers: dict[str, int] = {}
    for point in journal.read(path) if path.is_file() else ():
        machine, _, metric = point.key.removeprefix(SYSTEM).partition("/")
        if not point.key.startswith(SYSTEM) or not metric.endswith(COUNTED):
            continue
        if machine not in numbers:
            numbers[machine] = first + len(numbers)
            yield _name("process_name", f"machine {machine}", numbers[machine])
        yield {
            "name": metric,
            "ph": "C",
            "ts": point.time * 1000,
            "pid": numbers[machine],
            "args": {"percent": point.value},
        }


def _name(what: str, name: str, pid: int, tid: int = 0) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
