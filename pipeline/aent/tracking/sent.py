"""How much of the journal MLflow has: a file in the run's folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

from aent.runtime.files import write_whole
from aent.tracking import journal


class Sent:
    """MLflow has everything before byte ``position`` of the journal, of one kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def read(self, run_id: str) -> None:
        """Take up what an earlier process has sent to this run of MLflow's, if it was this one.

        All is sent again where the journal has lost its end since (a machine lost its power): the
        entries that have come in its place would be left out.
        """
        words = self.path.read_text().split() if self.path.is_file() else []
        known = len(words) == 2 and words[0] == run_id and words[1].isdigit()
        self.position = int(words[1]) if known else 0
        journal_path = self.path.with_name(journal.JOURNAL_FILE)
        if self.position and not journal.ends_line(journal_path, self.position):
            self.position = 0

    def passed(self, position: int) -> None:
        """Nothing of this kind lies before ``position``: not to be looked for again by this
        process."""
        self.position = position

    def arrived(self, run_id: str, position: int) -> None:
        """Remember that MLflow has everything before ``position``."""
        self.position = position
        # on a full disk a later process sends again what is there: the same twice is as once
        with contextlib.suppress(OSError):
            write_whole(self.path, f"{run_id} {position}\n")
