"""Programs graded by their tests, in the grading processes, here and at a service."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.schema import TaskSection
from aent.runtime.environment import data_path
from aent.tasks import files, trial
from aent.tasks.judge import JudgePool
from inference.stand_in import standing_in
from wording import assert_names

ADD = Question(0, "add", "import math\nassert add(1, 2) == 3\nassert add(-1, 1) == 0")
PROGRAMS = {
    "def add(a, b): return a + b": 1,
    "It is\n```python\ndef add(a, b):\n    print('hi')\n    return a + b\n```": 1,
    "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int' = 0\n"
    "def add(a, b): return P(a + b).x": 1,
    "def add(a, b): return a - b": 0,
    "def add(a, b): return math.fsum([a, b])\nimport sys\nsys.exit(0)": 0,
    "import os\nos._exit(0)": 0,
    "no Python": 0,
    "import time\ndef add(a, b): time.sleep(1000)": 0,
    "def add(a, b): return '\ud800'": 0,  # half a character, which no UTF-8 has
    "def add(a, b): return a + b\0": 0,
    "def add(a, b): return a + b  # \x1b]0;\u2028\ufffd\x7f": 1,
}

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="there is no bwrap (Debian's package bubblewrap)"
)


def section(**changes: Any) -> TaskSection:
    return TaskSection.model_validate({"graders": [{"kind": "code", **changes}]})


@pytest.mark.slow
@needs_bwrap
def test_a_program_is_right_where_its_tests_pass() -> None:
    # the one that sleeps takes all of this time, which a loaded machine may need for the others
    with JudgePool(section(timeout_s=20.0, memory_gib=0.5)) as judge:
        verdicts = judge.judge([ADD] * len(PROGRAMS), [Response(text) for text in PROGRAMS])
    assert [v.reward for v in verdicts] == list(PROGRAMS.values())
    assert {v.error for v in verdicts} == {""}


@pytest.mark.slow
@needs_bwrap
def test_the_recipes_programs_pass_their_tests_and_others_do_not() -> None:
    questions = files.questions(data_path("recipes/rewards/programs.jsonl"))
    assert len(questions) >= 30
    solved = [Response(question.metadata["solution"]) for question in questions]
    others = solved[1:] + solved[:1]
    with JudgePool(section().model_copy(update={"judge_processes": 2})) as judge:
        right = [v.reward for v in judge.judge(questions, solved)]
        wrong = [v.reward for v in judge.judge(questions, others)]
    assert right == [1.0] * len(questions)
    assert wrong == [0.0] * len(questions)


@pytest.mark.slow
@needs_bwrap
def test_a_sandbox_that_cannot_be_made_is_told_before_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(trial.faults(section(), [ADD], 2)) == []
    assert list(trial.faults(section(sandbox="none"), [ADD], 2)) == []
    assert_names(capfd.readouterr().err, "task.graders", "code", "sandbox: none")
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = trial.faults(section(), [ADD], 2)
    assert_names(fault, "task.graders", "code", "bwrap", "url", "sandbox: none")


def fusion(body: dict[str, Any]) -> dict[str, Any]:
    """A stand-in for SandboxFusion: it runs the code with the input."""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", body["code"]], input=body["stdin"], capture_output=True,
            text=True, timeout=body["run_timeout"], check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        result = {"status": "TimeLimitExceeded", "stdout": (late.stdout or b"").decode()}
        return {"status": "Failed", "message": "", "run_result": result}
    result = {
        "status": "Finished", "return_code": ran.returncode, "stdout": ran.stdout,
        "stderr": ran.stderr, "execution_time": 0.1,
    }  # fmt: skip
    status = "Success" if ran.returncode == 0 else "Failed"
    return {"status": status, "message": "", "compile_result": None, "run_result": result}


def test_a_service_runs_the_same_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bodies: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> Any:
        bodies.append(body)
        if '"broken' in body["stdin"]:
            return 200, {"status": "SandboxError", "message": "no room", "run_result": None}
        if '"foreign' in body["stdin"]:
            return 200, {"rewards": [1.0]}
        return 200, fusion(body)

    texts = [*PROGRAMS, "broken", "foreign"]
    with standing_in(answer) as server:
        grader = {"url": f"{server.url}/", "timeout_s": 3.0, "memory_gib": 0.5}
        with JudgePool(section(**grader)) as judge:
            verdicts = judge.judge([ADD] * len(texts), [Response(text) for text in texts])
        assert set(server.asked) == {"/run_code"}
    assert [v.reward for v in verdicts] == [*PROGRAMS.values(), 0, 0]
    assert {v.error for v in verdicts[:-2]} == {""}
    assert_names(verdicts[-2].error, "SandboxError", "no room")
    assert_names(verdicts[-1].error, "SandboxFusion", "rewards")
    # fields and values of its RunCodeRequest
    assert {"language", "code", "stdin", "run_timeout", "memory_limit_MB"} == set(bodies[0])
    assert (bodies[0]["language"], bodies[0]["run_timeout"]) == ("python", 3.0)
    assert bodies[0]["memory_limit_MB"] == 512
    assert json.dumps(ADD.answer)[1:-1] in bodies[0]["stdin"]
