"""Sends the journal to MLflow. Everything here may wait for a server and raises what MLflow raises.

The run's folder remembers what MLflow has (``mlflow_sent``), so that the next sender (this process
after an outage, a resumed run or ``aent mlflow-sync``) continues from there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from aent.recipe.load import load_recorded
from aent.recipe.schema import Recipe
from aent.runtime.files import write_whole
from aent.runtime.log import log
from aent.tracking import journal
from aent.tracking.address import look_command, tracking_uri
from aent.tracking.entities import EntitySender, entities_left
from aent.tracking.journal import JOURNAL_FILE, Point, Status, Tag
from aent.tracking.refused import deliver, tell
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
        self._left_out: set[str] = set()  # metrics that stay in the journal
        self._told: set[str] = set()  # metrics of which MLflow refused a value
        self.refused = 0  # entries and parameters that stay here because MLflow does not take them

    @property
    def _journal(self) -> Path:
        return self.run_dir / JOURNAL_FILE

    def send(self) -> None:
        """Send everything that the journal has so far. After an error, a later call continues
        there. What MLflow refuses for ever is named on stderr, counted and passed over."""
        store = self._open()
        batch: list[Point] = []
        position = self._sent.position
        for entry, end in journal.entries(self._journal, position):
            if batch and (isinstance(entry, Status | Tag) or len(batch) == POINTS_PER_BATCH):
                self._send_points(store, batch, position)
                batch = []
            if isinstance(entry, Point):
                batch.append(entry)
            elif isinstance(entry, Status | Tag):
                self._send_word(store, entry, end)
            position = end
        if batch or position > self._sent.position:
            self._send_points(store, batch, position)

    def _send_points(self, store: Store, points: Sequence[Point], end: int) -> None:
        """Send a batch that ends before byte ``end``."""
        sendable = [point for point in points if self._may_send(point.key)]
        refused = deliver(sendable, store.log_points, store.prove_writable)
        self._sent.arrived(store.run_id, end)
        self.refused += len(points) - len(sendable) + len(refused)
        for point, why in refused:
            self._leave_out(point, why)

    def _leave_out(self, point: Point, why: str) -> None:
        """After a refusal of this point: a number can only be refused for its metric's name, and
        then all of the metric's are; NaN and infinity perhaps for themselves."""
        all_of_it = math.isfinite(point.value)
        known = self._left_out if all_of_it else self._told
        if point.key not in known:
            known.add(point.key)
            value = "" if all_of_it else f" if it is {point.value}"
            tell(f"the metric {point.key}{value} (step {point.step})", self.run_dir, why)

    def _send_word(self, store: Store, entry: Status | Tag, end: int) -> None:
        def send(entries: Sequence[Status | Tag]) -> None:
            for each in entries:
                if isinstance(each, Status):
                    store.set_status(each.status, each.time)
                else:
                    store.set_tag(each.tag, each.text)

        refused = deliver([entry], send, store.prove_writable)
        self._sent.arrived(store.run_id, end)
        self.refused += len(refused)
        what = f"the status {entry.status}" if isinstance(entry, Status) else f"the tag {entry.tag}"
        for _, why in refused:
            tell(what, self.run_dir, why)

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
        refused = store.describe(self.recipe)
        if not self._from_start:
            self._sent.read(store.run_id)
        for entry, end in journal.entries(self._journal):
            if end > self._sent.position:
                break
            if isinstance(entry, Point):
                self._may_send(entry.key)
        self._store = store
        self.refused += len(refused)
        for what, why in refused:
            tell(what, self.run_dir, why)
        return store

    def _may_send(self, key: str) -> bool:
        """Whether every store accepts this name beside the others; if not, say so once."""
        if key in self._left_out:
            return False
        if key in self._keys:
            return True
        other = journal.colliding(key, self._keys)
        if other is None:
            self._keys.add(key)
        else:
            self._left_out.add(key)
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
    sender = Sender(run_dir, recipe, from_start)
    sender.send()
    entities = EntitySender(run_dir, recipe, from_start)
    uploader = Uploader(run_dir, recipe, from_start)
    failures = []
    for rest in (entities.send, lambda: uploader.send(figure=True)):
        try:  # neither waits for the other
            rest()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    status = journal.last_status(run_dir / JOURNAL_FILE)
    run_id = known_run_id(run_dir)
    look = look_command(tracking_uri(recipe, run_dir))
    refused = sender.refused + uploader.refused + entities.refused
    but = f" but {refused} entries that it refuses" if refused else ""
    return f"MLflow has all of {run_dir}{but}: run {run_id}, {status} ({look})"


if __name__ == "__main__":  # a process of its own for mark_ended, which may have to kill it
    sync(Path(sys.argv[1]), from_start=False)
