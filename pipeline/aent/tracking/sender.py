"""Sends the journal to MLflow. Everything here may wait for a server and raises what MLflow raises.

The run's folder remembers what MLflow has (``mlflow_sent``), so that the next sender (this process
after an outage, a resumed run or ``aent mlflow-sync``) continues from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aent.recipe.load import load_recorded
from aent.recipe.schema import Recipe
from aent.runtime.files import write_whole
from aent.runtime.log import log
from aent.tracking import journal
from aent.tracking.address import look_command, tracking_uri
from aent.tracking.entities import EntitySender, entities_left
from aent.tracking.journal import JOURNAL_FILE, Point, Status, Tag
from aent.tracking.sent import Sent
from aent.tracking.store import POINTS_PER_BATCH, RUN_ID_FILE, Store, known_run_id
from aent.tracking.uploads import Uploader, files_left

SENT_FILE = "mlflow_sent"  # the run's id, and the number of journal bytes whose points MLflow has


class Sender:
    """Sends points and status of one run from the journal in ``run_dir``, in order.

    from_start: begin with the first entry, even if it was sent before (sending twice does no harm).
    """

    def __init__(self, run_dir: Path, recipe: Recipe, from_start: bool = False) -> None:
        self.run_dir, self.recipe = run_dir, recipe
        self._from_start = from_start
        self._store: Store | None = None
        self._sent = Sent(run_dir / SENT_FILE)
        self._keys: set[str] = set()  # of the metrics sent
        self._refused: set[str] = set()

    @property
    def _journal(self) -> Path:
        return self.run_dir / JOURNAL_FILE

    def send(self) -> None:
        """Send everything that the journal has so far. After an error, a later call continues
        there."""
        store = self._open()
        batch: list[Point] = []
        position = self._sent.position
        for entry, end in journal.entries(self._journal, position):
            if batch and (isinstance(entry, Status | Tag) or len(batch) == POINTS_PER_BATCH):
                store.log_points(batch)
                self._sent.arrived(store.run_id, position)
                batch = []
            if isinstance(entry, Point):
                batch += [entry] if self._may_send(entry.key) else []
            elif isinstance(entry, Status):
                store.set_status(entry.status, entry.time)
                self._sent.arrived(store.run_id, end)
            elif isinstance(entry, Tag):
                store.set_tag(entry.tag, entry.text)
                self._sent.arrived(store.run_id, end)
            position = end
        if batch:
            store.log_points(batch)
        if position > self._sent.position:
            self._sent.arrived(store.run_id, position)

    def left(self) -> int:
        """How many points, tags and statuses of the journal MLflow has not taken."""
        later = journal.entries(self._journal, self._sent.position)
        return sum(isinstance(entry, Point | Status | Tag) for entry, _ in later)

    def _open(self) -> Store:
        """The run in MLflow: the one whose id is in the folder, else a new one."""
        if self._store is not None:
            return self._store
        if run_id := known_run_id(self.run_dir):
            store = Store(tracking_uri(self.recipe, self.run_dir), run_id)
        else:
            store = Store.create(self.recipe, self.run_dir)
            write_whole(self.run_dir / RUN_ID_FILE, store.run_id + "\n")
        store.describe(self.recipe)
        if not self._from_start:
            self._sent.read(store.run_id)
        for entry, end in journal.entries(self._journal):
            if end > self._sent.position:
                break
            if isinstance(entry, Point):
                self._may_send(entry.key)
        self._store = store
        return store

    def _may_send(self, key: str) -> bool:
        """Whether every store accepts this name beside the others; if not, say so once."""
        if key in self._keys:
            return True
        other = journal.colliding(key, self._keys)
        if other is None:
            self._keys.add(key)
        elif key not in self._refused:
            self._refused.add(key)
            log.warning(
                f"aent: the metric {key} stays in the journal: there is already one called "
                f"{other}, and "
                "not every store accepts both"
            )
        return other is None


def points_sent(run_dir: Path) -> bool:
    """Whether MLflow has every point of the journal, and the status."""
    sent = Sent(run_dir / SENT_FILE)
    sent.read(known_run_id(run_dir))
    return sent.position == (run_dir / JOURNAL_FILE).stat().st_size


def everything_sent(run_dir: Path) -> bool:
    """Whether MLflow has the whole journal, and the files that it names."""
    return points_sent(run_dir) and files_left(run_dir) == 0 and entities_left(run_dir) == 0


def sync(run_dir: Path, from_start: bool = True) -> str:
    """Send everything in the journal to MLflow, points first; return one line that says what was
    done.

    Raises FileNotFoundError if the folder is not a run's, RecipeError, and what MLflow raises.
    """
    recipe = load_recorded(run_dir / "recipe.yaml")
    if not (run_dir / JOURNAL_FILE).is_file():
        raise FileNotFoundError(f"{run_dir} is not a run folder: it has no {JOURNAL_FILE}")
    Sender(run_dir, recipe, from_start).send()
    failures = []
    for rest in (
        EntitySender(run_dir, recipe, from_start).send,
        lambda: Uploader(run_dir, recipe, from_start).send(figure=True),
    ):
        try:  # neither waits for the other
            rest()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    status = journal.last_status(run_dir / JOURNAL_FILE)
    run_id = known_run_id(run_dir)
    look = look_command(tracking_uri(recipe, run_dir))
    return f"MLflow has all of {run_dir}: run {run_id}, {status} ({look})"


if __name__ == "__main__":  # a process of its own for mark_ended, which may have to kill it
    sync(Path(sys.argv[1]), from_start=False)
