"""Tracking of one run: journal first, then MLflow, off the critical path.

Rank 0 logs; a background thread sends (sender.py). What MLflow does not take (a server that is
away or silent, a full disk) is reported once an outage on stderr and counted; everything is in the
journal, goes in order when MLflow answers again, and never stops training.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime import node_metrics
from aent.runtime.files import write_whole
from aent.runtime.log import log
from aent.tracking import figures, journal
from aent.tracking.address import look_command, tracking_uri
from aent.tracking.background import Background
from aent.tracking.journal import JOURNAL_FILE, File, Point, Tag
from aent.tracking.journal import Status as StatusEntry
from aent.tracking.sender import Sender, everything_sent, points_sent
from aent.tracking.store import RUN_ID_FILE, known_run_id
from aent.tracking.uploads import FIGURE_FILE, Uploader

Status = Literal["FINISHED", "FAILED", "KILLED"]
Table = Literal["samples", "heldout"]  # in training; of an evaluation
FIGURE_EVERY_S = 10.0  # at most
ANSWER_S = 10  # for one answer, when a run has died
# what differs when a step is executed again: how long it took
UNREPEATABLE = ("time/", "system/", "engine/", "tokens/per_s")


class Tracker:
    """Where rank 0 writes what happened. No method waits for MLflow, except ``finish``."""

    def __init__(self, run_dir: Path, recipe: Recipe, run_id: str = "") -> None:
        """Begin a run, or go on with the one whose journal lies in ``run_dir``.

        Args:
            run_id: MLflow's, if somebody knows it (a checkpoint does); else the one that the
                folder knows; else a run is made as soon as MLflow answers.
        """
        self.run_dir, self.recipe = run_dir, recipe
        self.failures = 0  # of writing, drawing or sending
        self._journal = run_dir / JOURNAL_FILE
        self._metrics: dict[str, dict[int, float]] = {}  # by key and step; what the journal has
        self._files: set[str] = set()
        self._unwritten: list[journal.Entry] = []  # the disk was full
        self._figure_due = self._unsent_figure = False
        self._drawn_at = -math.inf
        self._reported: set[str] = set()
        self._lock = threading.Lock()  # of the journal and of what it has
        self._watched = threading.Event()  # no more of the system's metrics
        if run_id:
            self._try("keep MLflow's id", write_whole, run_dir / RUN_ID_FILE, run_id + "\n")
        self._try("read the journal", self._read_journal)
        self._append([StatusEntry(journal.now(), "RUNNING")])
        self._sender, self._uploader = Sender(run_dir, recipe), Uploader(run_dir, recipe)
        self._uploads = Background("uploads", self._upload)
        self._points = Background("tracking", self._send)
        self._figure = Background("figure", self._draw_if_due)
        self._points.wake()  # open the run at once
        self._watcher = threading.Thread(target=self._watch_system, name="system", daemon=True)
        self._watcher.start()

    @property
    def look(self) -> str:
        """The command or address with which a person looks at the run."""
        return look_command(tracking_uri(self.recipe, self.run_dir))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of a step (steps count from 0; values may be NaN).

        What the journal has of this step already (it is executed again after a resume) is not
        logged again; where the values differ, a warning says by how much.
        """
        time_ms = journal.now()
        new, repeated = [], {}
        with self._lock:
            for key, value in metrics.items():
                known = self._metrics.setdefault(key, {})
                if step in known:
                    repeated[key] = (known[step], float(value))
                else:
                    known[step] = float(value)
                    new.append(Point(step, time_ms, key, float(value)))
        self._append(new)
        if repeated:
            self._compare(step, repeated)
        self._points.wake()

    def tag(self, tag: str, text: str) -> None:
        """Record a tag of the run; the newest text counts."""
        self._append([Tag(journal.now(), tag, text)])
        self._points.wake()

    def log_samples(
        self, step: int, rows: Sequence[dict[str, Any]], folder: Table = "samples"
    ) -> None:
        """Record a table of responses: a row each, with the same keys in every row.

        It lies in ``run_dir/FOLDER`` and among MLflow's artifacts, one table a step.
        """
        self._keep(folder, f"step_{step:06d}.json", lambda: _table(rows))

    def log_page(self, step: int, make: Callable[[], str]) -> None:
        """Record a page of HTML, one a step, in ``run_dir/tokens`` and among MLflow's artifacts."""
        self._keep("tokens", f"step_{step:06d}.html", make)

    def _keep(self, folder: str, file: str, make: Callable[[], str]) -> None:
        """Write what ``make`` makes into a file that the journal names."""
        name = f"{folder}/{file}"
        if name in self._files:  # executed again: the first one stays, as the first values do
            return
        if self._try(f"write the {folder}", _write_new, self.run_dir / name, make):
            self._files.add(name)
            self._append([File(journal.now(), name, folder)])
            self._points.wake()

    def refresh_figure(self) -> None:
        """Have ``run_dir/figure.png`` drawn anew and sent, in the background, not too often."""
        self._figure_due = True
        self._figure.wake()

    def finish(self, status: Status | None, timeout_s: float = 30.0) -> bool:
        """Draw the figure, send what is left, and set the run's status (None: it goes on later, and
        stays RUNNING).

        Returns whether MLflow has everything: points and status within ``timeout_s``, and then
        files within as much again. If not, what it lacks is said on stderr, and ``aent
        mlflow-sync`` sends it.
        """
        self._watched.set()
        self._watcher.join(timeout_s)
        self._figure_due = True
        self._figure.end()
        if status is not None:
            self._append([StatusEntry(journal.now(), status)])
        self._points.end()
        self._figure.join(timeout_s)
        has_points = self._points.join(timeout_s)
        self._uploads.end()
        if not has_points:
            self._say_left(f"{self._sender.left()} entries of the journal", timeout_s)
        elif not self._uploads.join(timeout_s):
            self._say_left(f"{self._uploader.left()} files, or the figure,", timeout_s)
        else:
            return True
        return False

    def _say_left(self, what: str, timeout_s: float) -> None:
        log.warning(
            f"aent: MLflow ({self.look}) did not take {what} within {timeout_s:g} s; when it is "
            f"back: aent mlflow-sync {self.run_dir}"
        )

    # -- the journal

    def _read_journal(self) -> None:
        """What an earlier process of this run has written."""
        if not self._journal.is_file():
            return
        journal.drop_torn_line(self._journal)
        for entry, _ in journal.entries(self._journal):
            if isinstance(entry, Point):
                self._metrics.setdefault(entry.key, {}).setdefault(entry.step, entry.value)
            elif isinstance(entry, File):
                self._files.add(entry.file)

    def _append(self, new: Sequence[journal.Entry]) -> None:
        with self._lock:
            self._unwritten += new
            if self._try("write the journal", journal.append, self._journal, self._unwritten):
                self._unwritten = []

    def _compare(self, step: int, repeated: dict[str, tuple[float, float]]) -> None:
        differences = {
            key: abs(then - now)
            for key, (then, now) in repeated.items()
            if then != now
            and not (math.isnan(then) and math.isnan(now))
            and not key.startswith(UNREPEATABLE)
        }
        if differences:
            # relative to the value; NaN against a number comes first
            worst = max(
                differences,
                key=lambda k: (
                    math.inf
                    if math.isnan(differences[k])
                    else differences[k] / max(map(abs, repeated[k]))
                ),
            )
            then, now = repeated[worst]
            log.warning(
                f"aent: step {step} was executed again: {len(differences)} of {len(repeated)} "
                f"values differ from the journal's, {worst} by {differences[worst]:.3g} ({then!r} "
                f"in the journal, {now!r} now); the journal's stay"
            )

    # -- in the background

    def _send(self) -> bool:
        if not self._try("send to MLflow", self._sender.send):
            return False
        self._say_again("send to MLflow", "MLflow takes points again, and has all")
        self._uploads.wake()
        return True

    def _upload(self) -> bool:
        if not known_run_id(self.run_dir):  # the points come first
            return not self._uploads.ended
        figure, self._unsent_figure = self._unsent_figure, False
        if not self._try("upload to MLflow", self._uploader.send, figure):
            self._unsent_figure |= figure
            return False
        self._say_again("upload to MLflow", "MLflow takes files again, and has all")
        return True

    def _draw_if_due(self) -> bool:
        ended = self._figure.ended
        if self._figure_due and (ended or time.monotonic() - self._drawn_at >= FIGURE_EVERY_S):
            self._figure_due, self._drawn_at = False, time.monotonic()
            if self._try("draw the figure", self._draw):
                self._unsent_figure = True
                self._uploads.wake()
        return True

    def _say_again(self, what: str, text: str) -> None:
        if what in self._reported:
            self._reported.discard(what)
            log.warning(f"aent: {text}")

    def _draw(self) -> None:
        with self._lock:
            metrics = {key: dict(series) for key, series in self._metrics.items()}
        figures.draw(metrics, self.recipe, self.run_dir / FIGURE_FILE)

    def _watch_system(self) -> None:
        every = self.recipe.tracking.system_metrics_every_s
        if not every:
            return
        with self._lock:
            before = [max(s) for k, s in self._metrics.items() if k.startswith("system/")]
        number = max(before, default=-1) + 1  # of the sample: these metrics' own step
        seen: dict[str, float] = {}  # when each machine was looked at
        while not self._watched.wait(every):
            for name, (when, values) in node_metrics.newest(self.run_dir).items():
                if seen.get(name) != when:
                    seen[name] = when
                    self.log(number, {f"system/{name}/{k}": v for k, v in values.items()})
            number += 1

    def _try(self, what: str, work: Callable[..., Any], *arguments: Any) -> bool:
        """Run ``work``; a failure is counted and reported, not raised."""
        try:
            work(*arguments)
        except Exception as error:
            self.failures += 1
            if what not in self._reported:
                self._reported.add(what)
                why = redacted(" ".join(f"{type(error).__name__}: {error}".split())[:500])
                log.warning(
                    f"aent: tracking could not {what}: {why} (training goes on; what is logged is "
                    f"in {self._journal})"
                )
            return False
        return True


def _write_new(path: Path, make: Callable[[], str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(make(), encoding="utf-8")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as MLflow's tables are (columns, data); NaN becomes null."""
    columns = list(rows[0]) if rows else []
    data = [[_json_value(row[c]) for c in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data})


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- after the ranks died


def mark_ended(run_dir: Path, status: Status, timeout_s: float = 60.0) -> bool:
    """Give the run this status unless it has a final one; for another process than rank 0's, which
    is dead by now.

    Also sends what the dead process had not sent; a run that ended before MLflow heard of it is
    made there now. MLflow is spoken to by a process of its own, killed after ``timeout_s``: the
    import alone takes seconds, on a loaded machine many. A silent server is waited for no longer
    than ``ANSWER_S``. Returns whether it went well; a failure (a full disk too) is one line on
    stderr, and ``aent mlflow-sync`` is left to do.
    """
    path = run_dir / JOURNAL_FILE
    try:
        journal.drop_torn_line(path)
        if journal.last_status(path) in (None, "RUNNING"):
            journal.append(path, [StatusEntry(journal.now(), status)])
        elif everything_sent(run_dir):
            return True
    except OSError as error:
        log.warning(f"aent: {path} does not say that the run is {status}: {error}")
        return False
    command = [sys.executable, "-m", "aent.tracking.sender", str(run_dir)]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env={"MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_S), **os.environ},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,
        )
        why = "" if done.returncode == 0 else (done.stderr.strip() or "no reason given")
    except subprocess.TimeoutExpired:
        why = f"no answer within {time.monotonic() - started:.0f} s"
    except OSError as error:  # no memory for another process
        why = str(error)
    if why:
        last = redacted(why.splitlines()[-1])
        lacks = f"does not have every file of {run_dir}"
        if not points_sent(run_dir):
            lacks = f"does not know that {run_dir} is {status}"
        log.warning(f"aent: MLflow {lacks}: {last}; when it answers: aent mlflow-sync {run_dir}")
    return not why
