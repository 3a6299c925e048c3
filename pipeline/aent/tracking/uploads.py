"""Uploads the recipe, tables and the figure from the run's folder to MLflow's artifacts.

Separate from the points (``sender``), which must not wait for a file: artifacts often have another
store than metrics, and an upload may hang while the server works. Each upload has a deadline. The
run's folder remembers what has arrived (``mlflow_uploaded``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aent.recipe.load import dump
from aent.recipe.schema import Recipe
from aent.runtime.log import log
from aent.tracking import journal
from aent.tracking.address import tracking_uri
from aent.tracking.background import within
from aent.tracking.journal import JOURNAL_FILE, File
from aent.tracking.refused import deliver, tell
from aent.tracking.sent import Sent
from aent.tracking.store import Store, known_run_id

UPLOADED_FILE = "mlflow_uploaded"
FIGURE_FILE = "figure.png"
UPLOAD_S = 300.0  # for one file


class Uploader:
    """Uploads the artifacts of one run in ``run_dir``, which exists in MLflow already.

    from_start: begin with the first file, even if it was uploaded before.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, from_start: bool = False) -> None:
        self.run_dir, self.recipe = run_dir, recipe
        self._from_start = from_start
        self._store: Store | None = None
        self._sent = Sent(run_dir / UPLOADED_FILE)
        self._refused_files = 0  # of the journal
        self._figure_refused = False

    @property
    def refused(self) -> int:
        """How many files MLflow has refused."""
        return self._refused_files + self._figure_refused

    def send(self, figure: bool) -> None:
        """Upload every file that the journal names so far, and the current figure. After an error,
        a later call continues there. A file that MLflow refuses for ever is named on stderr,
        counted and passed over.

        Raises TimeoutError naming a file that took longer than ``UPLOAD_S``, and what MLflow
        raises.
        """
        store = self._open()
        for entry, end in journal.entries(self.run_dir / JOURNAL_FILE, self._sent.position):
            if isinstance(entry, File):
                why = self._upload(store, self.run_dir / entry.file, entry.folder)
                self._sent.arrived(store.run_id, end)
                if why:
                    self._refused_files += 1
                    tell(entry.file, self.run_dir, why)
            else:
                self._sent.passed(end)
        if figure and (self.run_dir / FIGURE_FILE).is_file():
            why = self._upload(store, self.run_dir / FIGURE_FILE, None)
            if why and not self._figure_refused:
                tell(FIGURE_FILE, self.run_dir, why)
            self._figure_refused = bool(why)

    def left(self) -> int:
        """How many files of the journal MLflow has not taken."""
        return files_left(self.run_dir)

    def _upload(self, store: Store, path: Path, folder: str | None) -> str:
        """The server's answer if it refuses the file for ever; empty if it takes it."""
        if not path.is_file():
            log.warning(f"aent: {path} is gone and cannot be uploaded")
            return ""

        def send(_: Sequence[Path]) -> None:
            self._in_time(f"the upload of {path}", lambda: store.upload(path, folder))

        refused = deliver([path], send, lambda: self._begin(store))
        return refused[0][1] if refused else ""

    def _in_time(self, what: str, work: Callable[[], None]) -> None:
        try:
            within(UPLOAD_S, what, work)
        except TimeoutError:
            self._store = None  # the upload that hangs still uses the client
            raise

    def _open(self) -> Store:
        if self._store is None:
            run_id = known_run_id(self.run_dir)
            store = Store(tracking_uri(self.recipe, self.run_dir), run_id)
            self._begin(store)
            if not self._from_start:
                self._sent.read(run_id)
            self._store = store
        return self._store

    def _begin(self, store: Store) -> None:
        recipe = dump(self.recipe)
        self._in_time("the upload of the recipe", lambda: store.begin_uploads(recipe))


def files_left(run_dir: Path) -> int:
    """How many files of the journal MLflow has not taken."""
    sent = Sent(run_dir / UPLOADED_FILE)
    sent.read(known_run_id(run_dir))
    later = journal.entries(run_dir / JOURNAL_FILE, sent.position)
    return sum(isinstance(entry, File) for entry, _ in later)
