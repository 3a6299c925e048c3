"""Files of questions: JSONL or parquet, one row a question.

Columns: ``question`` and ``answer``, both text (a whole number is taken as its digits); any others
go along as the question's metadata. ``aent data`` makes such files of the public ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aent.tasks import Question

COLUMNS = ("question", "answer")


def questions(path: Path, instruction: str | None = None) -> list[Question]:
    """The distinct questions of a file, in its order, each followed by ``instruction``.

    Raises FileNotFoundError; ValueError naming file and row for one that is not as it must be.
    """
    found: dict[str, Question] = {}
    for number, row in enumerate(rows(path), start=1):
        missing = [c for c in COLUMNS if c not in row]
        if missing:
            raise ValueError(
                f"{path}: row {number} has no column {missing[0]!r} (it has "
                f"{', '.join(map(repr, row)) or 'none'}); aent data NAME FILE makes a file that has"
            )
        question, answer = (as_text(row[c]) for c in COLUMNS)
        if not question or not answer:
            empty = COLUMNS[bool(question)]
            raise ValueError(f"{path}: row {number}: {empty!r} must be a text that is not empty")
        prompt = f"{question}\n{instruction}" if instruction else question
        others = {k: v for k, v in row.items() if k not in COLUMNS}
        found.setdefault(question, Question(len(found), prompt, answer, others))
    if not found:
        raise ValueError(f"{path} has no rows")
    return list(found.values())


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl or .parquet file; raises as ``questions``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is not a parquet file: {error}") from error
    if path.suffix != ".jsonl":
        raise ValueError(f"{path} must be a .jsonl or .parquet file")
    return list(_json_rows(path))


def _json_rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} is not a JSON object")
            yield row


def as_text(value: Any) -> str:
    """A cell's text, '' where it is neither text nor number."""
    if isinstance(value, float) and value.is_integer():  # as AMC's answers are published
        value = int(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value.strip() if isinstance(value, str) else ""
