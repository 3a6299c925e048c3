"""Tracking of one run: journal first, then MLflow, off the critical path.

Rank 0 logs; a background thread sends (sender.py). If MLflow does not take it (the server is
unreachable or silent, a disk is full), stderr says so once for each outage. Everything is in the
journal and is sent in order when MLflow answers again; training never stops for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.files import write_whole
from aent.runtime.log import log
from aent.tracking import figures, journal, machines, repeated_step
from aent.tracking.address import look_command, tracking_uri
from aent.tracking.background import Background
from aent.tracking.ended import Status
from aent.tracking.entities import EntityKind, EntitySender
from aent.tracking.journal import JOURNAL_FILE, Entity, File, Point, Tag
from aent.tracking.journal import Status as StatusEntry
from aent.tracking.known import Known
from aent.tracking.sender import Sender
from aent.tracking.store import RUN_ID_FILE, known_run_id
from aent.tracking.tables import as_table
from aent.tracking.uploads import FIGURE_FILE, Uploader

Table = Literal["samples", "heldout"]  # in training; of an evaluation
FIGURE_EVERY_S = 10.0  # at most
LARGEST_FILE = 32 * 2**20  # bytes of one that somebody else wrote


class Tracker:
    """Rank 0 records the run here. No method waits for MLflow, except ``finish``."""

    def __init__(
        self, run_dir: Path, recipe: Recipe, run_id: str = "", first_step: int = 0
    ) -> None:
        """Begin a run, or continue the one whose journal is in ``run_dir``.

        Args:
            run_id: MLflow's id, if known (from a checkpoint); else the one in the folder; else a
                run is created as soon as MLflow answers.
            first_step: that will be executed.
        """
        self.run_dir, self.recipe = run_dir, recipe
        self.failures = 0  # of writing, drawing or sending
        self._journal = run_dir / JOURNAL_FILE
        # of the journal; nothing of machines, which are too many
        self._known = Known(first_step)
        self._sampled = -1  # number of the machines' last sample, which is their metrics' step
        self._unwritten: list[journal.Entry] = []  # the disk was full
        self._figure_due = self._unsent_figure = False
        self._drawn_at = -math.inf
        self._reported: set[str] = set()
        self._lock = threading.Lock()  # guards the journal and these copies of it
        self._watched = threading.Event()  # no more system metrics will come
        if run_id:
            self._try("keep MLflow's id", write_whole, run_dir / RUN_ID_FILE, run_id + "\n")
        self._try("read the journal", self._read_journal)
        self._append([StatusEntry(journal.now(), "RUNNING")])
        self._sender, self._uploader = Sender(run_dir, recipe), Uploader(run_dir, recipe)
        self._entity_sender = EntitySender(run_dir, recipe)
        self._uploads = Background("uploads", self._upload)
        self._entities = Background("entities", self._send_entities)
        self._points = Background("tracking", self._send)
        self._figure = Background("figure", self._draw_if_due)
        self._points.wake()  # create the run at once
        self._watcher = threading.Thread(target=self._watch_system, name="system", daemon=True)
        self._watcher.start()

    @property
    def look(self) -> str:
        """The command or address that shows the run."""
        return look_command(tracking_uri(self.recipe, self.run_dir))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of a step (steps count from 0; values may be NaN).

        Values that the journal already has of this step (it is executed again after a resume) are
        not logged again; if they differ, a warning says by how much.
        """
        time_ms = journal.now()
        new, repeated = [], {}
        with self._lock:
            known = self._known.of(step)
            for key, value in metrics.items():
                if key in known:
                    repeated[key] = (known[key], float(value))
                else:
                    new.append(Point(step, time_ms, key, float(value)))
            for point in new:
                self._known.keep(point.step, point.key, point.value)
            self._known.forget_before(step)
        self._append(new)
        if text := repeated_step.difference(step, repeated):
            log.warning(f"aent: {text}")
        self._points.wake()

    def tag(self, tag: str, text: str) -> None:
        """Record a tag of the run; the newest text counts."""
        self._append([Tag(journal.now(), tag, text)])
        self._points.wake()

    def log_samples(
        self, step: int, rows: Sequence[dict[str, Any]], folder: Table = "samples"
    ) -> None:
        """Record a table of responses: one row each, all with the same keys.

        There is one table per step, in ``run_dir/FOLDER`` and among MLflow's artifacts.
        """
        name = f"{folder}/step_{step:06d}.json"
        self._keep(File(journal.now(), name, folder), name, lambda: as_table(rows))

    def log_page(self, step: int, make: Callable[[], str]) -> None:
        """Record a step's HTML page, in ``run_dir/tokens`` and among MLflow's artifacts."""
        name = f"tokens/step_{step:06d}.html"
        self._keep(File(journal.now(), name, "tokens"), name, make)

    def log_files(self, folder: str, find: Callable[[], Sequence[Path]]) -> None:
        """Have MLflow get the files that ``find`` finds in this folder of ``run_dir``, each once; a
        large one stays where it is."""
        self._try(f"look for {folder}", self._log_files, folder, find)

    def _log_files(self, folder: str, find: Callable[[], Sequence[Path]]) -> None:
        for path in find():
            name = f"{folder}/{path.name}"
            if not self._known.has_file(name) and path.stat().st_size <= LARGEST_FILE:
                self._known.keep_file(name)
                self._append([File(journal.now(), name, folder)])
                self._points.wake()

    def log_entity(self, entity: EntityKind, name: str, make: Callable[[], str]) -> None:
        """Record something that MLflow has pages for (``entities``): ``make`` returns the text of
        the file ``name`` in ``run_dir``, from which it is sent."""
        self._keep(Entity(journal.now(), entity, name), name, make)

    def _keep(self, entry: File | Entity, name: str, make: Callable[[], str]) -> None:
        """Write what ``make`` returns into the file that the entry names."""
        # the step is executed again: the first file stays, as the first values do
        if self._known.has_file(name):
            return
        if self._try(f"write the {name.partition('/')[0]}", _write_new, self.run_dir / name, make):
            self._known.keep_file(name)
            self._append([entry])
            self._points.wake()

    def refresh_figure(self) -> None:
        """Redraw and send ``run_dir/figure.png``, in the background and not too often."""
        self._figure_due = True
        self._figure.wake()

    def finish(
        self,
        status: Status | None,
        timeout_s: float = 30.0,
        on_progress: Callable[[], None] = lambda: None,
    ) -> bool:
        """Draw the figure, send what is left, and set the run's status (None: the run will continue
        and stays RUNNING). ``on_progress`` is called meanwhile: a policy may take hours.

        Returns whether MLflow has everything that it does not refuse: points and status within
        ``timeout_s``, then files, traces and data sets within the same time again, and the policy
        within the time for its bytes. If not, stderr says what MLflow lacks; ``aent mlflow-sync``
        sends it.
        """
        self._watched.set()
        self._watcher.join(timeout_s)
        self._figure_due = True
        self._figure.end()
        if status is not None:
            self._append([StatusEntry(journal.now(), status)])
        self._points.end()
        self._figure.join(timeout_s)
        has_points = self._points.join(timeout_s, on_progress)
        self._uploads.end()
        self._entities.end()
        if not has_points:
            self._say_left(f"{self._sender.left()} entries of the journal", timeout_s)
            self._say_refused()
            return False
        patience = timeout_s + self._entity_sender.patience()
        deadline = time.monotonic() + patience
        has_files = self._uploads.join(timeout_s, on_progress)
        if not has_files:
            self._say_left(f"{self._uploader.left()} files, or the figure,", timeout_s)
        has_entities = self._entities.join(deadline - time.monotonic(), on_progress)
        if not has_entities:
            what = f"{self._entity_sender.left()} of its traces, data sets and policies"
            self._say_left(what, patience)
        self._say_refused()
        return has_files and has_entities

    def _say_left(self, what: str, timeout_s: float) -> None:
        log.warning(
            f"aent: MLflow ({self.look}) did not take {what} within {timeout_s:g} s; when it is "
            f"back: aent mlflow-sync {self.run_dir}"
        )

    def _say_refused(self) -> None:
        senders = (self._sender, self._uploader, self._entity_sender)
        if refused := sum(sender.refused for sender in senders):
            log.warning(
                f"aent: MLflow refused {refused} entries of this start, which stay in "
                f"{self.run_dir}; they are named above"
            )

    # -- the journal

    def _read_journal(self) -> None:
        """What an earlier process of this run wrote."""
        if not self._journal.is_file():
            return
        journal.drop_torn_line(self._journal)
        for entry, _ in journal.entries(self._journal):
            if isinstance(entry, Point) and entry.key.startswith(machines.SYSTEM):
                self._sampled = max(self._sampled, entry.step)
            elif isinstance(entry, Point):
                self._known.keep(entry.step, entry.key, entry.value)
            elif isinstance(entry, File | Entity):
                self._known.keep_file(entry.file if isinstance(entry, File) else entry.content)

    def _append(self, new: Sequence[journal.Entry]) -> None:
        with self._lock:
            self._unwritten += new
            if self._try("write the journal", journal.append, self._journal, self._unwritten):
                self._unwritten = []

    # -- in the background

    def _send(self) -> bool:
        if not self._try("send to MLflow", self._sender.send):
            return False
        self._say_again("send to MLflow", "MLflow answers again and has all points")
        self._uploads.wake()
        self._entities.wake()
        return True

    def _upload(self) -> bool:
        if not known_run_id(self.run_dir):  # the points come first
            return not self._uploads.ended
        figure, self._unsent_figure = self._unsent_figure, False
        if not self._try("upload to MLflow", self._uploader.send, figure):
            self._unsent_figure |= figure
            return False
        self._say_again("upload to MLflow", "MLflow answers again and has all files")
        return True

    def _send_entities(self) -> bool:
        if not known_run_id(self.run_dir):  # the points come first
            return not self._entities.ended
        what = "send traces, data sets or the policy to MLflow"
        if not self._try(what, self._entity_sender.send):
            return False
        self._say_again(what, "MLflow answers again and has all traces, data sets and policies")
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
            metrics = {key: curve.shown() for key, curve in self._known.curves.items()}
        figures.draw(metrics, self.recipe, self.run_dir / FIGURE_FILE)

    def _watch_system(self) -> None:
        every = self.recipe.tracking.system_metrics_every_s
        if not every:
            return
        seen: dict[str, float] = {}  # when each machine was last sampled
        while not self._watched.wait(every):
            self._sampled += 1
            self._try("read the machines' metrics", self._look_at_machines, seen)

    def _look_at_machines(self, seen: dict[str, float]) -> None:
        self._append(machines.new_points(self.run_dir, self._sampled, seen))
        self._points.wake()

    def _try(self, what: str, work: Callable[..., Any], *arguments: Any) -> bool:
        """Run ``work``; report and count a failure instead of raising it."""
        try:
            work(*arguments)
        except Exception as error:
            if what not in self._reported:
                self._reported.add(what)
                why = redacted(" ".join(f"{type(error).__name__}: {error}".split())[:500])
                log.warning(
                    f"aent: tracking could not {what}: {why} (training continues; everything "
                    f"logged is in {self._journal})"
                )
            self.failures += 1  # when it has been reported
            return False
        return True


def _write_new(path: Path, make: Callable[[], str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(make(), encoding="utf-8")
