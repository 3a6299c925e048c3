"""Sends traces, data sets and the policy from the journal to MLflow, which has pages for them.

Separate from points (``sender``) and files (``uploads``), so that a server that is slow with these,
or does not support them, delays nothing else. Each has a deadline. The run's folder remembers what
has arrived (``mlflow_entities``). Each entity has an id of its own, or is looked up first, so that
sending twice creates no duplicates.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.log import log
from aent.tracking import datasets, journal, policies
from aent.tracking.address import tracking_uri
from aent.tracking.background import within
from aent.tracking.client import NotTaken
from aent.tracking.journal import JOURNAL_FILE, Entity
from aent.tracking.policies import SavedPolicy
from aent.tracking.refused import tell
from aent.tracking.sent import Sent
from aent.tracking.store import Store, known_run_id
from aent.tracking.traced import TracedStep

EntityKind = Literal["traces", "datasets", "policy"]
ENTITIES_FILE = "mlflow_entities"
ENTITY_S = 300.0  # for one, in addition to the time for its bytes (``policies``)


class EntitySender:
    """Sends the entities of one run in ``run_dir``, which exists in MLflow already.

    from_start: begin with the first one, even if it was sent before.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, from_start: bool = False) -> None:
        self.run_dir, self.recipe = run_dir, recipe
        self._from_start = from_start
        self._store: Store | None = None
        self._sent = Sent(run_dir / ENTITIES_FILE)
        self._unsupported: set[str] = set()
        self.refused = 0  # traces, data sets and policies

    def send(self) -> None:
        """Send everything that the journal names so far. After an error, a later call continues
        there.

        Entities that the server does not support are reported once and left out. One that it
        refuses for ever is named on stderr, counted and passed over. Raises TimeoutError naming
        what took longer than its deadline, and what MLflow raises.
        """
        store = self._open()
        for entry, end in journal.entries(self.run_dir / JOURNAL_FILE, self._sent.position):
            if isinstance(entry, Entity):
                self._send(store, entry)
                self._sent.arrived(store.run_id, end)
            else:
                self._sent.passed(end)

    def left(self) -> int:
        """How many of the journal's MLflow has not taken."""
        return entities_left(self.run_dir)

    def patience(self) -> float:
        """Seconds that the bytes of the remaining ones may take."""
        seconds = 0.0
        for entry in _later(self.run_dir):
            if entry.entity == "policy":
                # reported when it is sent
                with contextlib.suppress(OSError, ValueError, TypeError):
                    text = (self.run_dir / entry.content).read_text(encoding="utf-8")
                    seconds += SavedPolicy.from_json(text).seconds
        return seconds

    def _send(self, store: Store, entry: Entity) -> None:
        path = self.run_dir / entry.content
        if not path.is_file():
            log.warning(f"aent: {path} is gone and cannot be sent to MLflow")
            return
        try:
            seconds, work = self._work(store, entry.entity, path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:  # a power failure leaves empty files
            log.warning(
                f"aent: {path} is damaged ({type(error).__name__}) and cannot be sent to MLflow"
            )
            return
        try:
            refused: list[tuple[str, str]] = []
            within(ENTITY_S + seconds, f"sending {path}", lambda: refused.extend(work()))
        except NotTaken as error:
            self._tell(entry.entity, str(error))
        except TimeoutError:
            self._store = None  # the call that hangs still uses the client
            raise
        else:
            self.refused += len(refused)
            for what, why in refused:
                tell(f"{what} in {entry.content}", self.run_dir, why)

    def _work(
        self, store: Store, entity: str, text: str
    ) -> tuple[float, Callable[[], list[tuple[str, str]]]]:
        """(seconds that its bytes may take, the function that sends it and returns what MLflow
        refuses of it, with the answers)."""
        if entity == "traces":
            from aent.tracking import mlflow_traces  # it imports MLflow, which takes seconds

            step = TracedStep.from_json(text)
            return 0.0, lambda: mlflow_traces.send(store, step)
        if entity == "datasets":
            described = json.loads(text)
            return 0.0, lambda: datasets.send(store, described)
        policy = SavedPolicy.from_json(text)
        if not policy.is_there(self.run_dir):
            return 0.0, lambda: self._say_gone(policy)
        return policy.seconds, lambda: policies.send(store, self.run_dir, policy)

    def _say_gone(self, policy: SavedPolicy) -> list[tuple[str, str]]:
        log.warning(
            f"aent: {self.run_dir / policy.folder} is no longer the policy after {policy.steps} "
            "steps, so it is not sent to MLflow"
        )
        return []

    def _tell(self, entity: str, why: str) -> None:
        if entity not in self._unsupported:
            self._unsupported.add(entity)
            uri = redacted(tracking_uri(self.recipe, self.run_dir))
            log.warning(
                f"aent: MLflow ({uri}) does not take the run's {entity}: {why}; they stay in "
                f"{self.run_dir}"
            )

    def _open(self) -> Store:
        if self._store is None:
            run_id = known_run_id(self.run_dir)
            self._store = Store(tracking_uri(self.recipe, self.run_dir), run_id)
            if not self._from_start:
                self._sent.read(run_id)
        return self._store


def entities_left(run_dir: Path) -> int:
    """How many of the journal's MLflow has not taken."""
    return len(_later(run_dir))


def _later(run_dir: Path) -> list[Entity]:
    sent = Sent(run_dir / ENTITIES_FILE)
    sent.read(known_run_id(run_dir))
    later = journal.entries(run_dir / JOURNAL_FILE, sent.position)
    return [entry for entry, _ in later if isinstance(entry, Entity)]
