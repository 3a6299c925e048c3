"""Files of questions: JSONL or parquet, one row a question.

Columns: ``question`` and ``answer``, or those that ``task.columns`` names, both text (a number is
taken as its digits); any others go along as the question's metadata. ``aent data`` makes such files
of the public ones.

What would cost a run hours later is refused here, by row: an answer that is not there (NaN is how
tables write it), text that no tokenizer reads, two answers to one question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent.data.question import Question
from aent.tasks.verifiers import as_number

if TYPE_CHECKING:
    from aent.recipe.schema import ColumnsSection


def questions(
    path: Path, instruction: str | None = None, columns: ColumnsSection | None = None
) -> list[Question]:
    """The distinct questions of a file, in its order, each followed by ``instruction``.

    Raises FileNotFoundError; ValueError naming file and row for one that is not as it must be.
    """
    names = ("question", "answer") if columns is None else (columns.question, columns.answer)
    found: dict[tuple[str | None, str], Question] = {}
    for number, row in enumerate(rows(path), start=1):
        try:
            system, question = _turns(_cell(row, names[0]))
            answer = as_text(_cell(row, names[1]))
            for name, text in zip(
                (names[0], names[1], names[0]), (question, answer, system or "-")
            ):
                if fault := _fault(text):
                    raise ValueError(f"{name!r} {fault}")
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from None
        prompt = f"{question}\n{instruction}" if instruction else question
        others = {k: v for k, v in row.items() if k not in ("question", "answer")}
        asked = Question(len(found), prompt, answer, others, number, system)
        known = found.setdefault((system, question), asked)
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


def _cell(row: dict[str, Any], column: str) -> Any:
    """The value under a column's name, in which dots lead into mappings."""
    value: Any = row
    for name in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(
                f"there is no column {column!r} (there are {', '.join(map(repr, row)) or 'none'}): "
                "task.columns names those that are meant, aent data NAME FILE makes a file of a "
                "public one"
            )
        value = value[name]
    return value


def _turns(cell: Any) -> tuple[str | None, str]:
    """(the system's turn, the user's) of a text or of a list of messages."""
    if not isinstance(cell, list):
        return None, as_text(cell)
    roles = [message.get("role") if isinstance(message, dict) else None for message in cell]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(
            "messages must be a user's, or a system's and a user's, not "
            f"{', '.join(map(str, roles))}"
        )
    *system, user = (as_text(message.get("content")) for message in cell)
    return (system[0] if system else None), user


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
