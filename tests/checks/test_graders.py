"""Faults of graders that are reported before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aent.checks.recipe import check
from aent.recipe.load import load
from aent.runtime.environment import data_path
from wording import assert_names

Faults = Callable[..., list[str]]

FUNCTIONS = """
def good(response, question):
    return float(question.metadata["level"] == "2")

def worth_nothing(response, question):
    return None

def reward_func(completions, level, steps, **_):
    return [1.0] * len(completions)
"""


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    rows = [{"question": f"{i}?", "answer": str(i), "level": "2"} for i in range(9)]
    rows += [{"question": "9?", "answer": "9"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def of(graders: str, *overrides: str, machine: bool = False) -> list[str]:
        path = data_path("recipes/cpu/tiny.yaml")
        given = [f"task.graders={graders}", f"run_dir={tmp_path}/run", *overrides]
        return check(load(path, given), machine=machine)

    return of


@pytest.mark.parametrize(
    ("graders", "names"),
    [
        ("[]", "task.graders"),
        ("[{kind: last_number, weight: 0}]", "task.graders[0].weight"),
        ("[{kind: last_number}, {kind: last_number}]", "task.graders[1].name last_number"),
        ("[{kind: python, function: 'r.py:f', style: verl, group: true}]", "task.graders[0].group"),
        (
            "[{kind: judge, url: 'http://a/v1', model: m, rubric: r.txt, parse: 'SCORE'}]",
            "task.graders[0].parse",
        ),
        (
            "[{kind: judge, url: 'http://a/v1', model: m, rubric: r.txt, parse: '(SCORE'}]",
            "task.graders[0].parse",
        ),
        ("[{kind: code, sandbox: none, url: 'http://a'}]", "task.graders[0].sandbox url"),
        ("[{kind: code, token_file: t}]", "task.graders[0].token_file url"),
        ("[{kind: code, memory_gib: 8}]", "task.graders[0].memory_gib=8 task.judge_memory_gib=4"),
        ("[{kind: code, weight: 0}]", "task.graders[0].weight code"),
        ("[{kind: reward_model, url: 'http://a', model: m, weight: 0}]", "task.graders[0].weight"),
    ],
)
def test_graders_that_say_nothing(faults: Faults, graders: str, names: str) -> None:
    (fault,) = faults(graders)
    assert_names(fault, *names.split())


def test_nobody_waits_longer_for_a_grader_than_for_an_engine(faults: Faults) -> None:
    (fault,) = faults("[{kind: last_number}]", "task.judge_timeout_s=600")
    assert_names(fault, "task.judge_timeout_s=600", "rollout.progress_timeout_s")
    (fault,) = faults("[{kind: http, url: 'http://a', timeout_s: 700}]")
    assert_names(fault, "task.graders[0].timeout_s=700", "rollout.progress_timeout_s")
    (fault,) = faults("[{kind: code, timeout_s: 580}]")
    assert_names(fault, "task.graders[0].timeout_s=580", "+ 30", "rollout.progress_timeout_s")


def test_what_needs_another_first_grader(faults: Faults) -> None:
    own = "{kind: python, function: 'r.py:f'}"
    vote = "entropy_controls=[{kind: majority_reward}]"
    assert faults(f"[{{kind: last_number}}, {own}]", vote) == []
    (fault,) = faults(f"[{own}, {{kind: last_number}}]", vote)
    assert_names(fault, "majority_reward", "task.graders", "python")
    (fault,) = faults(f"[{own}, {{kind: math_verify}}]", "evaluation.suites=[gsm8k]")
    assert_names(fault, "evaluation.suites", "gsm8k", "task.graders", "math_verify", "python")
    assert faults(f"[{{kind: math_verify}}, {own}]", "evaluation.suites=[gsm8k]") == []
    (fault,) = faults(
        "[{kind: reasoning_gym}]", "task.kind=file", "task.path=q.jsonl", "task.config={}"
    )
    assert_names(fault, "task.graders[0]", "reasoning_gym", "task.kind=file")


def test_functions_are_tried_on_this_machine_only(faults: Faults, tmp_path: Path) -> None:
    def of(graders: str, machine: bool = True) -> list[str]:
        path = f"{tmp_path}/q.jsonl"
        task = (f"task.path={path}", "task.kind=file", "task.config={}", "task.heldout=1")
        return faults(graders.replace("HERE", str(tmp_path)), *task, machine=machine)

    def own(name: str, more: str = "") -> str:
        return f"{{kind: python, name: {name}, function: 'HERE/rewards.py:{name}'{more}}}"

    # the first row has a level, the function is not asked about others
    assert of(f"[{own('good')}, {{kind: last_number}}]") == []
    (fault,) = of(f"[{own('good')}, {own('worth_nothing')}]")
    assert_names(fault, "task.graders", "worth_nothing", "row 1", "q.jsonl", "None")
    level, steps = of(f"[{own('reward_func', ', style: trl')}]")
    assert_names(level, "reward_func", "'level'", "row 10", "q.jsonl")
    assert_names(steps, "reward_func", "'steps'", "row 1", "q.jsonl")
    (fault,) = of(f"[{own('godo')}]")
    assert_names(fault, "task.graders", "rewards.py", "godo", "good")
    assert of(f"[{own('godo')}]", machine=False) == []


@pytest.mark.parametrize(
    ("answer", "names"), [("4", "assert row 3 4"), ("assert f() ==", "Python row 3")]
)
def test_answers_that_are_no_tests_are_named_by_file_and_row(
    faults: Faults, tmp_path: Path, answer: str, names: str
) -> None:
    rows = [{"question": f"{i}?", "answer": f"assert f() == {i}"} for i in range(4)]
    rows[2]["answer"] = answer
    path = tmp_path / "tests.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = ("task.kind=file", f"task.path={path}", "task.config={}", "task.heldout=1")
    (fault,) = faults("[{kind: code}]", *task, machine=True)
    assert_names(fault, "task.graders", "code", "tests.jsonl", *names.split())
