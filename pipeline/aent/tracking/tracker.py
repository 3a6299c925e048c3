"""Tracking of one run: journal first, then MLflow, off the critical path.

Rank 0 logs; a background thread sends. What MLflow does not take (a server that is away, a full
disk) is reported once on stderr and counted; the points stay in the journal, go with the next
attempt, and never stop training.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.tracking import figures, journal
from aent.tracking.journal import Point
from aent.tracking.store import (
    POINTS_PER_BATCH,
    RUN_ID_FILE,
    TERMINAL,
    Store,
    look_command,
    tracking_uri,
)

Status = Literal["FINISHED", "FAILED", "KILLED"]
JOURNAL_FILE = "journal.jsonl"
FIGURE_FILE = "figure.png"


class Tracker:
    """Where rank 0 writes what happened. No method waits for MLflow, except ``finish``."""

    def __init__(self, run_dir: Path, recipe: Recipe) -> None:
        self.run_dir, self.recipe = run_dir, recipe
        self.failures = 0  # of writing, drawing or sending
        self._points: list[Point] = []
        self._keys: set[str] = set()
        self._sent = 0  # points that MLflow has
        self._files: deque[tuple[Path, str | None]] = deque()  # (file, artifact folder) to send
        self._figure_due = False
        self._status: Status | None = None
        self._store: Store | None = None
        self._reported: set[str] = set()
        self._wake = threading.Event()
        self._wake.set()  # open the run at once
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @property
    def look(self) -> str:
        """The command or address with which a person looks at the run."""
        return look_command(tracking_uri(self.recipe, self.run_dir))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of a step (steps count from 0; values may be NaN)."""
        time_ms = journal.now()
        points = [Point(step, time_ms, key, float(value)) for key, value in metrics.items()]
        self._try("write the journal", journal.append, self.run_dir / JOURNAL_FILE, points)
        for point in points:
            if point.key not in self._keys:
                other = journal.colliding(point.key, self._keys)
                if other is not None:
                    self._failed(f"send {point.key}", f"a metric is called {other} already")
                    continue
                self._keys.add(point.key)
            self._points.append(point)
        self._wake.set()

    def log_samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Record a table of sampled responses: a row each, with the same keys in every row.

        It lies in ``run_dir/samples`` and among MLflow's artifacts, one table a step.
        """
        path = self.run_dir / "samples" / f"step_{step:06d}.json"
        if self._try("write the samples", _write_table, path, rows):
            self._files.append((path, "samples"))
            self._wake.set()

    def refresh_figure(self) -> None:
        """Have ``run_dir/figure.png`` drawn anew (in the background) and sent."""
        self._figure_due = True
        self._wake.set()

    def finish(self, status: Status, timeout_s: float = 30.0) -> bool:
        """Send what is left, draw the figure, and set the run's status.

        Returns whether MLflow has everything within ``timeout_s``; what it has not is said on
        stderr and stays in the run's folder.
        """
        self._status = status
        self._figure_due = True
        self._wake.set()
        self._thread.join(timeout_s)
        left = len(self._points) - self._sent
        if self._thread.is_alive():
            self._failed(
                "finish in time",
                f"MLflow ({self.look}) did not take {left} points and {len(self._files)} files "
                f"within {timeout_s:g} s",
            )
            return False
        return self._store is not None and left == 0 and not self._files

    # -- in the background

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            status = self._status
            if self._figure_due:
                self._figure_due = False
                self._try("draw the figure", self._draw)
            self._try("send to MLflow", self._send)
            if status is not None:
                if self._store is not None:
                    self._try("end the run in MLflow", self._store.end, status)
                return

    def _draw(self) -> None:
        path = self.run_dir / FIGURE_FILE
        metrics: dict[str, dict[int, float]] = {}
        for point in list(self._points):
            metrics.setdefault(point.key, {})[point.step] = point.value
        figures.draw(metrics, self.recipe, path)
        if (path, None) not in self._files:
            self._files.append((path, None))

    def _send(self) -> None:
        if self._store is None:
            self._store = Store.create(self.recipe, self.run_dir)
        while self._sent < len(self._points):
            batch = self._points[self._sent : self._sent + POINTS_PER_BATCH]
            self._store.log_points(batch)
            self._sent += len(batch)
        while self._files:
            self._store.upload(*self._files[0])
            self._files.popleft()

    def _try(self, what: str, work: Callable[..., Any], *arguments: Any) -> bool:
        """Run ``work``; a failure is counted and reported, not raised."""
        try:
            work(*arguments)
        except Exception as error:
            self._failed(what, f"{type(error).__name__}: {error}")
            return False
        return True

    def _failed(self, what: str, why: str) -> None:
        self.failures += 1
        if what not in self._reported:
            self._reported.add(what)
            print(
                f"aent: tracking could not {what}: {' '.join(why.split())[:500]} (training goes "
                f"on; the points are in {self.run_dir / JOURNAL_FILE}; said once)",
                file=sys.stderr,
                flush=True,
            )


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as MLflow's tables are (columns, data); NaN becomes null."""
    columns = list(rows[0]) if rows else []
    data = [[_json_value(row[c]) for c in columns] for row in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"columns": columns, "data": data}), encoding="utf-8")


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- after the ranks died


def mark_ended(run_dir: Path, status: Status, timeout_s: float = 20.0) -> bool:
    """Give the run this status in MLflow unless it has a final one; for another process than rank
    0's, which is dead by now.

    Also sends the journal again: points that the dead process had not sent are not lost. A run
    that ended before MLflow heard of it is made there now. It all happens in a process of its own,
    killed after ``timeout_s``. Returns whether it went well; a failure is one line on stderr.
    """
    command = [sys.executable, "-m", "aent.tracking.tracker", str(run_dir), status]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, start_new_session=True
        )
        why = "" if done.returncode == 0 else (done.stderr.strip() or "no reason given")
    except subprocess.TimeoutExpired:
        why = f"no answer within {time.monotonic() - started:.0f} s"
    if why:
        last = why.splitlines()[-1]
        print(f"aent: MLflow's run of {run_dir} was not set to {status}: {last}", file=sys.stderr)
    return not why


def _mark(run_dir: Path, status: str) -> None:
    recipe = load(run_dir / "recipe.yaml")
    if (run_dir / RUN_ID_FILE).is_file():
        run_id = (run_dir / RUN_ID_FILE).read_text().strip()
        store = Store(tracking_uri(recipe, run_dir), run_id)
    else:
        store = Store.create(recipe, run_dir)
    if store.status() in TERMINAL:
        return
    store.end(status)
    if (run_dir / JOURNAL_FILE).is_file():
        points = journal.read(run_dir / JOURNAL_FILE)
        for start in range(0, len(points), POINTS_PER_BATCH):
            store.log_points(points[start : start + POINTS_PER_BATCH])


if __name__ == "__main__":
    _mark(Path(sys.argv[1]), sys.argv[2])
