"""A run's timeline as a Chrome trace (https://ui.perfetto.dev opens it): what every rank did, and
every request of its engines.

Format: Chrome's "Trace Event Format", complete events (``X``) and names of processes and rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aent.runtime.timeline import FOLDER


def trace(run_dir: Path) -> dict[str, Any]:
    """The trace of everything in ``run_dir/timeline``; a last line cut short is left out.

    Raises FileNotFoundError if there is nothing.
    """
    files = sorted(run_dir.glob(f"{FOLDER}/rank*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{run_dir} has no timeline: no file {FOLDER}/rank*.jsonl")
    events: list[dict[str, Any]] = []
    for path in files:
        rank = int(path.stem.removeprefix("rank"))
        events.append(_name("process_name", f"rank {rank}", rank))
        events += _drawn(list(_read(path)), rank)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a machine lost its power here
            continue


def _drawn(events: list[dict[str, Any]], rank: int) -> Iterator[dict[str, Any]]:
    """Events of one rank, each track in as many rows as it has at once."""
    rows: dict[tuple[str, int], int] = {}  # (track, lane): number of the row
    ends: dict[str, list[float]] = {}  # of each track, by lane: when its last event ends
    for event in sorted(events, key=lambda e: (e["begin"], -e["end"])):
        facts = {k: v for k, v in event.items() if k not in ("name", "begin", "end", "track")}
        track, begin, end = event["track"], event["begin"], event["end"]
        lane = 0
        if track != "phases":  # phases lie within one another
            lanes = ends.setdefault(track, [])
            free = (i for i, busy_until in enumerate(lanes) if busy_until <= begin)
            lane = next(free, len(lanes))
            lanes[lane : lane + 1] = [end]
        if (track, lane) not in rows:
            rows[track, lane] = len(rows)
            yield _name("thread_name", track, rank, rows[track, lane])
        yield {
            "name": event["name"],
            "ph": "X",
            "ts": begin * 1e6,
            "dur": (end - begin) * 1e6,
            "pid": rank,
            "tid": rows[track, lane],
            "args": facts,
        }


def _name(what: str, name: str, pid: int, tid: int = 0) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
