"""The report of ``aent data check`` on a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from wording import assert_names

LONG = "a train leaves the town of Ulm at nine and goes north with forty miles an hour"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["data", "check", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_counts_sources_and_overlap_with_the_suites_that_are_there(folder: Path) -> None:
    rows = [{"question": f"{i}?", "answer": i, "data_source": "ab"[i > 2]} for i in range(6)]
    rows += [rows[0], {"question": f"Once {LONG.upper()}, when?", "answer": 9, "data_source": "b"}]
    write(folder / "q.jsonl", rows)
    suite = [{"question": f"Look: {LONG}. Where?", "answer": 1}, {"question": "4?", "answer": 4}]
    write(folder / "data" / "math-500.jsonl", suite)
    code, out, _ = check("q.jsonl")
    assert code == 0
    counts, sources, overlap = out.splitlines()
    assert_names(counts, "q.jsonl", "8 rows", "7 questions", 1)
    assert_names(sources, "b 4", "a 3")
    assert_names(overlap, "math-500", "2 questions", "row 5, 8")


def test_a_file_that_a_run_would_refuse_is_refused(folder: Path) -> None:
    write(folder / "q.jsonl", [{"problem": "a", "answer": 1}])
    code, _, error = check("q.jsonl")
    assert code == 2
    assert_names(error, "q.jsonl", "row 1", "'question'", "task.columns")
    assert check("none.jsonl")[0] == 2


def test_questions_that_differ_in_signs_of_punctuation_only(folder: Path) -> None:
    rows = [{"question": q, "answer": 7} for q in ("What is 3 + 4?", "what is 3+4", "What is 3*4?")]
    write(folder / "q.jsonl", rows)
    # a suite's question of a few words is not one that has them among others
    write(folder / "data" / "gsm8k.jsonl", [{"question": "what is 3 * 4", "answer": 12},
                                            {"question": "is 3", "answer": 12}])  # fmt: skip
    code, out, _ = check("q.jsonl")
    assert code == 0
    _, alike, overlap = out.splitlines()
    assert_names(alike, "1 differ", "row 2")
    assert_names(overlap, "gsm8k", "1 questions", "row 3")


def test_a_recipes_source_that_names_the_file_is_meant(folder: Path) -> None:
    write(folder / "q.jsonl", [{"problem": "a", "answer": 1}])
    write(folder / "other.jsonl", [{"question": "a", "answer": 1}])
    (folder / "r.yaml").write_text(
        "name: x\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0}\n"
        "task: {graders: [{kind: last_number}], sources: [{name: a, path: gone.jsonl}, "
        "{name: b, path: q.jsonl, columns: {question: question}}]}\n"
    )
    code, _, error = check("q.jsonl", "--recipe", "r.yaml")
    assert code == 2
    assert_names(error, "q.jsonl", "row 1", "'question'")
    code, _, error = check("other.jsonl", "--recipe", "r.yaml")
    assert code == 2
    assert_names(error, "other.jsonl", "task.sources", "gone.jsonl, q.jsonl")


@pytest.mark.slow
def test_with_a_recipe_what_is_left_out_and_why(folder: Path) -> None:
    rows = [{"problem": f"{i}?", "answer": str(i)} for i in range(9)]
    rows += [{"problem": LONG * 9, "answer": "1"}, {"problem": "x?", "answer": "5$ and $6$"}]
    write(folder / "q.jsonl", rows)
    (folder / "r.yaml").write_text(
        "name: x\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0}\n"
        "task: {columns: {question: problem}, graders: [{kind: math_verify}]}\n"
        "rollout: {max_prompt_tokens: 200}\n"
    )
    code, out, error = check("q.jsonl", "--recipe", "r.yaml")
    assert code == 0, error
    assert_names(out, "11 questions", "1 questions", "rollout.max_prompt_tokens=200", "row 11")
    assert_names(out.splitlines()[-1], "9 questions")
