"""Files of questions: JSONL or parquet, one row a question.

Columns: ``question`` and ``answer``, both text (a number is taken as its digits); any others go
along as the question's metadata. ``aent data`` makes such files of the public ones.

What would cost a run hours later is refused here, by row: an answer that is not there (NaN is how
tables write it), text that no tokenizer reads, two answers to one question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from aent.data.question import Question
from aent.tasks.verifiers import as_number

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
        for name, text in zip(COLUMNS, (question, answer)):
            if fault := _fault(text):
                raise ValueError(f"{path}: row {number}: {name!r} {fault}")
        prompt = f"{question}\n{instruction}" if instruction else question
        others = {k: v for k, v in row.items() if k not in COLUMNS}
        asked = Question(len(found), prompt, answer, others, number)
        known = found.setdefault(question, asked)
        if not same_answer(known.answer, answer):
            raise ValueError(
                f"{path}: row {number} has the question of row {known.row} and another answer: "
                f"{answer[:100]!r}, there {known.answer[:100]!r}"
            )
    if not found:
        raise ValueError(f"{path} has no rows")
    return list(found.values())


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are the same text, or the same number: 1 and 1.0 are."""
    number = as_number(one)
    return one == other or (number is not None and number == as_number(other))


def _fault(text: str) -> str:
    """What is wrong with a question or an answer; empty if nothing is."""
    if not text:
        return "must be a text that is not empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half a character at place {error.start} (a lone surrogate)"
    return ""


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl or .parquet file; raises as ``questions``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a parquet file: {error}") from error
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"{path} must be a .jsonl or .parquet file")
    return list(_json_rows(path))


def _json_rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                # a byte order mark may stand at the beginning
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text, object_pairs_hook=_without_repeated_keys)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: line {number} is not UTF-8 (byte {error.start}): save it as UTF-8"
                ) from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} is not a JSON object")
            yield row


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return row


def as_text(value: Any) -> str:
    """A cell's text, '' where it is neither text nor a finite number."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return ""
    if not math.isfinite(value):
        return ""
    if value == int(value):  # as AMC's answers are published
        return str(int(value))
    return f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)
