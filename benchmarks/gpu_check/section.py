"""The parts that all sections, which are processes, share: rows and time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from gpu_check.report import Row


class Section:
    """Rows go to a file one by one, so a crash of this process does not lose them."""

    def __init__(self, name: str, rows: Path, seconds: float, rehearse: bool) -> None:
        self.name, self.rows, self.rehearse = name, rows, rehearse
        self.device = "cpu" if rehearse else "cuda"
        self.start, self.seconds = time.monotonic(), seconds

    def add(self, row: Row) -> None:
        with self.rows.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def left(self) -> float:
        """Seconds until this section's deadline."""
        return self.seconds - (time.monotonic() - self.start)

    def skip(self, what: str, reason: str) -> None:
        self.add(Row(self.name, what, note=f"left out: {reason}"))

    def unless_late(self, what: str, needs: float, work: Callable[[], None]) -> None:
        """Do the work if ``needs`` seconds are left for it, else report that it was left out."""
        if self.left() < needs:
            return self.skip(what, f"{self.left():.0f} s were left, and it may take {needs:.0f}")
        work()


def of_command_line() -> tuple[Section, list[str]]:
    """The section that ``__main__`` started this process for, and its own arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    args, words = parser.parse_known_args()
    return Section(args.name, args.rows, args.seconds, args.rehearse), words
