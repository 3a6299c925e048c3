"""Files of questions: JSONL or parquet with one question per row, or a Hugging Face data set's
folder.

The columns are ``question`` and ``answer``, or those that ``task.columns`` names. Both are text (a
number is taken as its digits, a list or mapping as an answer as JSON). Other columns become the
question's metadata. ``aent data`` makes such files from public ones.

Faults that would stop a run hours later are refused here, by row or line: a missing answer (NaN in
tables), text that UTF-8 does not have, two answers to one question.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent.data.question import Question, Turn
from aent.tasks import folders
from aent.tasks.verifiers import as_number

if TYPE_CHECKING:
    from aent.recipe.sources import ColumnsSection

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON writes half a character, and pairs of them


def questions(
    path: Path,
    instruction: str | None = None,
    columns: ColumnsSection | None = None,
    split: str = folders.DEFAULT,
    subset: str | None = None,
) -> list[Question]:
    """The distinct questions of a file (or of a folder's split), in order, each followed by
    ``instruction``.

    Raises FileNotFoundError, or ValueError naming file and row if a row is invalid.
    """
    names = ("question", "answer") if columns is None else (columns.question, columns.answer)
    found: dict[tuple[str | None, tuple[Turn, ...], str], Question] = {}
    for number, row in enumerate(rows(path, split, subset), start=1):
        try:
            system, earlier, prompt = _turns(_cell(row, names[0]))
            answer = as_answer(_cell(row, names[1]))
            texts = [prompt, *(text for _, text in earlier), *([] if system is None else [system])]
            for name, text in [(names[1], answer), *((names[0], text) for text in texts)]:
                if not text:
                    raise ValueError(f"{name!r} must be text and not empty")
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from None
        others = {k: v for k, v in row.items() if k not in ("question", "answer")}
        after = f"\n{instruction}" if instruction else ""
        asked = Question(len(found), prompt + after, answer, others, number, system, earlier)
        known = found.setdefault(asked.text, asked)
        if not same_answer(known.answer, answer):
            raise ValueError(
                f"{path}: row {number} repeats the question of row {known.row} with another "
                f"answer: "
                f"{answer[:100]!r}, there {known.answer[:100]!r}"
            )
    if not found:
        raise ValueError(f"{path} has no rows")
    return list(found.values())


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are the same text or the same number, as 1 and 1.0."""
    number = as_number(one)
    return one == other or (number is not None and number == as_number(other))


def _cell(row: dict[str, Any], column: str) -> Any:
    """The value of a column; dots in its name lead into mappings."""
    value: Any = row
    for name in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(
                f"there is no column {column!r} (there are {', '.join(map(repr, row)) or 'none'}): "
                "set task.columns, or convert a public file by aent data NAME FILE"
            )
        value = value[name]
    return value


def _turns(cell: Any) -> tuple[str | None, tuple[Turn, ...], str]:
    """(system turn, earlier turns, the user's last turn) of a text or a list of messages."""
    if not isinstance(cell, list):
        return None, (), as_text(cell)
    roles = [message.get("role") if isinstance(message, dict) else None for message in cell]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    # a user's and an assistant's alternate, and a user's is last
    if len(spoken) % 2 == 0 or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise ValueError(
            "messages must be an optional system turn, then alternating user and assistant turns, "
            f"the last one a user's, not {', '.join(map(str, roles)) or 'none'}"
        )
    turns = [(str(role), as_text(message.get("content"))) for role, message in zip(roles, cell)]
    system = turns[0][1] if spoken is not roles else None
    return system, tuple(turns[len(roles) - len(spoken) : -1]), turns[-1][1]


def rows(
    path: Path, split: str = folders.DEFAULT, subset: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a .jsonl, .parquet or .arrow file, or of all files of a folder's split. Raises as
    ``questions``."""
    if path.is_dir():
        return [row for file in folders.files_of(path, split, subset) for row in rows(file)]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() in (".parquet", ".arrow"):
        return _table_rows(path)
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"{path} must be a .jsonl or .parquet file, or a data set's folder")
    return list(_json_rows(path))


def files_of(path: Path, split: str = folders.DEFAULT, subset: str | None = None) -> list[Path]:
    """The file itself, or the files of a folder's split. Raises as ``questions``."""
    if path.is_dir():
        return folders.files_of(path, split, subset)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return [path]


def _table_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path).to_pylist()
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            return stream.read_all().to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        kind = "a parquet file" if path.suffix.lower() == ".parquet" else "an Arrow stream"
        raise ValueError(f"{path} is not {kind}: {error}") from error


def _json_rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                # the file may begin with a byte order mark
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
            if _HALF.search(text) and (column := _column_with_half(row)) is not None:
                raise ValueError(
                    f"{path}: line {number}: {column!a} has half a character (a lone surrogate)"
                )
            yield row


def _column_with_half(row: dict[str, Any]) -> str | None:
    """The first column with half a character (graders get all of them), None if there is none."""
    for column, value in row.items():
        try:
            json.dumps([column, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return column
    return None


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return row


def as_answer(value: Any) -> str:
    """An answer's text; a list or mapping (as verl's ground truths may be) becomes JSON."""
    if isinstance(value, list | dict) and value:
        return json.dumps(value, ensure_ascii=False, default=str)
    return as_text(value)


def as_text(value: Any) -> str:
    """A cell's text; '' if it is neither text nor a finite number."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return ""
    if not math.isfinite(value):
        return ""
    if value == int(value):  # AMC's answers are published in this form
        return str(int(value))
    return f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)
