"""Answers on disk, written as they come, so that an interrupted evaluation can continue.

A folder holds ``settings.json`` (questions and weights), ``answers.jsonl`` (one line each) and,
once complete, ``summary.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aent.tracking.journal import drop_torn_line


@dataclass(frozen=True)
class Row:
    """One graded answer."""

    question: int  # index in the suite
    sample: int
    expected: str
    response: str
    reward: float
    error: str  # the grader's, '' if there was none
    length: int  # tokens
    truncated: bool


@dataclass
class Answers:
    """The answers of one folder."""

    folder: Path
    rows: dict[tuple[int, int], Row] = field(default_factory=dict)  # by question and sample

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> Answers:
        """Begin, or continue what is in ``folder``.

        Raises ValueError if the folder has other settings.
        """
        path = folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if path.is_file():
            before = json.loads(path.read_text())
            for key in sorted(before.keys() | settings.keys()):
                if before.get(key) != settings.get(key):
                    raise ValueError(
                        f"{folder} has answers with {key}={_shown(before.get(key))}, not "
                        f"{_shown(settings.get(key))}: choose another folder (--out)"
                    )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")
            beside.write_text(json.dumps(settings, indent=2) + "\n")
            os.replace(beside, path)
        answers = cls(folder)
        if answers.path.is_file():
            drop_torn_line(answers.path)
            for line in answers.path.read_text(encoding="utf-8").splitlines():
                row = Row(**json.loads(line))
                answers.rows[row.question, row.sample] = row
        return answers

    @property
    def path(self) -> Path:
        return self.folder / "answers.jsonl"

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows to the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        self.rows |= {(row.question, row.sample): row for row in rows}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
