"""Suites of programs: pass@k by running them, on files as HumanEval's and MBPP's are published."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from aent.data.response import Response
from aent.evaluation import command, suite, suites
from aent.evaluation.answers import Answers, Row
from aent.recipe.schema import Recipe
from aent.tasks import sources
from aent.tasks.judge import JudgePool

HUMAN_EVAL = [
    {
        "task_id": f"X/{i}",
        "prompt": f'def add{i}(x):\n    """Add {i} to x."""\n',
        "canonical_solution": f"    return x + {i}\n",
        "entry_point": f"add{i}",
        "test": "import numpy as np\n\ndef check(candidate):\n"
        f"    assert np.allclose(candidate(2.0), {2 + i})\n",
    }
    for i in (1, 2, 3)
]
MBPP = [
    {
        "prompt": f"Write a function that returns x times {i}.",
        "code": f"def times{i}(x): return {i} * x",
        "test_imports": ["import math"],
        "test_list": [f"assert times{i}(math.factorial(3)) == {6 * i}"],
    }
    for i in (2, 3)
]


def solution(row: dict[str, Any]) -> str:
    return row["code"] if "code" in row else row["prompt"] + row["canonical_solution"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="there is no bwrap (Debian's package bubblewrap)"
)
@pytest.mark.parametrize(("name", "rows"), [("humaneval-plus", HUMAN_EVAL), ("mbpp", MBPP)])
def test_pass_at_k_by_execution(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text("\n".join(map(json.dumps, rows)))
    sources.prepare(name, [raw], tmp_path / f"{name}.jsonl")
    asked = suites.find(name, ["samples=3"])
    questions = suites.questions(asked, tmp_path)
    assert all(q.prompt.endswith(suites.CODE_INSTRUCTION) for q in questions)

    def written(question: int, sample: int) -> str:  # question i has i right ones
        right = sample < question
        return f"So:\n```python\n{solution(rows[question if right else question - 1])}\n```"

    places = [(q, s) for q in range(len(rows)) for s in range(3)]
    responses = [Response(written(q, s)) for q, s in places]
    with JudgePool(asked.task) as judge:
        verdicts = judge.judge([questions[q] for q, _ in places], responses)
    answers = Answers.open(tmp_path / "out", {})
    answers.add(
        [
            Row(q, s, "", response.text, verdict.score, verdict.error, 1, False)
            for (q, s), response, verdict in zip(places, responses, verdicts)
        ]
    )
    summary = suite.summarize(asked, answers)
    n, expected = 3, {}
    for k in (1, 2, 3):  # the estimate as it is defined: draws of k that have a right one
        draws = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(len(rows))]
        expected[k] = sum(draws) / len(draws)
    assert summary.pass_at_k == pytest.approx(expected)
    assert summary.judge_exceptions == summary.judge_timeouts == 0


def test_the_recipe_says_where_programs_run() -> None:
    own = {"kind": "code", "sandbox": "none", "timeout_s": 3.0, "weight": 0.5}
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"bundled": "tiny-qwen2"},
            "controller": {"initial": 0.0},
            "task": {"graders": [{"kind": "last_number"}, own]},
        }
    )
    (grader,) = command._here(suites.find("mbpp"), recipe).graders
    assert grader.kind == "code"
    assert (grader.sandbox, grader.timeout_s, grader.weight) == ("none", 3.0, 1.0)
    assert command._here(suites.find("amc"), recipe) == suites.find("amc")
    heldout = suites.of_recipe(recipe)
    assert command._here(heldout, recipe) == heldout
