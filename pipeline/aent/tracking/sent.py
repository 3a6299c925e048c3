"""A file in the run's folder that says how much of the journal MLflow has."""

from __future__ import annotations

import contextlib
from pathlib import Path

from aent.runtime.files import read_again, write_whole
from aent.tracking import journal


class Sent:
    """MLflow has everything before byte ``position`` of the journal, of one kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def read(self, run_id: str) -> None:
        """Continue where an earlier process stopped sending, if it sent to the same MLflow run.

        Everything is sent again if the journal has lost its end since (by a power failure), because
        new entries have taken the place of lost ones.
        """
        words = read_again(self.path.read_text).split() if self.path.is_file() else []
        known = len(words) == 2 and words[0] == run_id and words[1].isdigit()
        self.position = int(words[1]) if known else 0
        journal_path = self.path.with_name(journal.JOURNAL_FILE)
        if self.position and not journal.ends_line(journal_path, self.position):
            self.position = 0

    def passed(self, position: int) -> None:
        """Nothing of this kind lies before ``position``, so this process need not look there
        again."""
        self.position = position

    def arrived(self, run_id: str, position: int) -> None:
        """Remember that MLflow has everything before ``position``."""
        self.position = position
        # if the disk is full, a later process sends this again; sending twice does no harm
        with contextlib.suppress(OSError):
            write_whole(self.path, f"{run_id} {position}\n")
