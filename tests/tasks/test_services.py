"""Graders behind a URL, called by the grading processes as in a run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.schema import TaskSection
from aent.tasks import services, trial
from aent.tasks.judge import JudgePool
from inference.stand_in import RESET, standing_in
from wording import assert_names, naming

QUESTIONS = [Question(i, f"{i} + 1?", str(i + 1), {"level": i}) for i in range(3)]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def section(*graders: dict[str, Any]) -> TaskSection:
    return TaskSection.model_validate({"graders": graders})


def test_a_service_gets_what_is_to_be_judged_and_is_asked_again_when_it_fails() -> None:
    bodies: list[dict[str, Any]] = []
    failures = [(503, {"error": "starting"}), RESET, (429, {})]

    def answer(path: str, body: dict[str, Any]) -> Any:
        bodies.append(body)
        if body["prompt"] == "0 + 1?" and failures:
            return failures.pop()
        if body["prompt"] == "1 + 1?":
            return 400, {"error": "no such language"}
        rewards = [
            {"right": r["text"] == body["answer"], "t": r["tokens"]} for r in body["responses"]
        ]
        return 200, {"rewards": rewards}

    asked = [QUESTIONS[0], QUESTIONS[0], QUESTIONS[1], QUESTIONS[2]]
    responses = [Response("1", 3), Response("2", 4, finished=False), Response("2"), Response("3")]
    with standing_in(answer) as server:
        grader = {"kind": "http", "url": f"{server.url}/grade", "weight": 2.0}
        with JudgePool(section(grader)) as judge:
            verdicts = judge.judge(asked, responses)
        assert set(server.asked) == {"/grade"}
    assert [v.reward for v in verdicts] == [8, 8, 0, 2]
    assert verdicts[1].grades[0].parts == {"right": 0, "t": 4}
    assert_names(verdicts[2].error, "400", "language")
    assert failures == []
    first = next(b for b in bodies if b["prompt"] == "0 + 1?")
    assert first["metadata"] == {"level": 0}
    assert first["responses"][1] == {"text": "2", "tokens": 4, "finished": False}


def test_requests_are_on_their_way_at_once() -> None:
    """The server answers none before it has three."""
    there = threading.Barrier(3, timeout=60)

    def answer(path: str, body: dict[str, Any]) -> Any:
        there.wait()
        return 200, {"rewards": [1.0]}

    with standing_in(answer) as server, JudgePool(
        section({"kind": "http", "url": server.url})
    ) as judge:  # fmt: skip
        verdicts = judge.judge(QUESTIONS, [Response("x")] * 3)
    assert [v.error for v in verdicts] == [""] * 3


def test_a_language_model_judges_by_a_rubric(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.txt"
    rubric.write_text(
        "Q: {prompt}\nReference: {answer}\nGiven: {response}\nEnd with SCORE: 0 to 10."
    )
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    said = {"1": "It could be SCORE: 3, no: SCORE: 10", "{answer}": "SCORE: -5", "3": "Nice!"}
    bodies: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> Any:
        bodies.append(body)
        given = body["messages"][0]["content"].partition("Given: ")[2].partition("\n")[0]
        return 200, {"choices": [{"message": {"content": said[given]}}]}

    with standing_in(answer) as server:
        grader = {
            "kind": "judge", "url": f"{server.url}/v1", "model": "m", "rubric": str(rubric),
            "scale": 10.0, "token_file": str(token),
        }  # fmt: skip
        with JudgePool(section(grader)) as judge:
            verdicts = judge.judge(QUESTIONS, [Response(t) for t in ("1", "{answer}", "3")])
        assert set(server.asked) == {"/v1/chat/completions"}
        token.chmod(0o644)
        (fault,) = trial.faults(section(grader), QUESTIONS, 2)
        assert_names(fault, "judge", "token_file", token)
    assert [v.reward for v in verdicts] == [1, -0.5, 0]
    assert_names(verdicts[2].error, "parse", "Nice!")
    assert bodies[0]["model"] == "m"
    contents = {b["messages"][0]["content"].partition("\n")[0] for b in bodies}
    assert contents == {f"Q: {q.prompt}" for q in QUESTIONS}
    assert set(trial.fingerprints(section(grader))) == {str(rubric)}


def test_a_reward_model_scores_the_conversation() -> None:
    """A row for each token, of which the last counts, or the score of the whole."""
    data: dict[str, Any] = {"1": [0.25], "2": [[3.0], [-1.5]], "3": [0.1, 0.9]}
    bodies: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> Any:
        bodies.append(body)
        scores = data[body["messages"][-1]["content"]]
        return 200, {"data": [{"index": 0, "object": "pooling", "data": scores}]}

    asked = [QUESTIONS[0], Question(1, "1 + 1?", "2", system="Be brief."), QUESTIONS[2]]
    with standing_in(answer) as server:
        grader = {"kind": "reward_model", "url": server.url, "model": "rm", "weight": 0.5}
        with JudgePool(section(grader)) as judge:
            verdicts = judge.judge(asked, [Response(t) for t in ("1", "2", "3")])
        assert set(server.asked) == {"/pooling"}
    assert [v.reward for v in verdicts] == [0.125, -0.75, 0]
    assert_names(verdicts[2].error, "num_labels", "2")
    told = next(b for b in bodies if b["messages"][0]["role"] == "system")
    assert told == {
        "model": "rm",
        "use_activation": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
        ],
    }


def test_a_service_that_is_not_there_is_told_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with standing_in(lambda *_: (200, {})) as server:
        gone = server.url
        (fault,) = trial.faults(section({"kind": "http", "url": gone}), QUESTIONS, 2)
        assert_names(fault, "task.graders", "http", "question 0", "'rewards'")
    monkeypatch.setattr(trial, "TRIAL_S", 4.0)
    (fault,) = trial.faults(section({"kind": "http", "url": gone}), QUESTIONS, 2)
    assert_names(fault, "task.graders", "http", gone)


@pytest.mark.parametrize(
    ("text", "names"), [(None, "rubric no.txt"), ("Score {answer}.", "r.txt {response}")]
)
def test_rubrics_that_cannot_be_filled_in(tmp_path: Path, text: str | None, names: str) -> None:
    path = tmp_path / ("no.txt" if text is None else "r.txt")
    if text is not None:
        path.write_text(text)
    spec = {"rubric": str(path), "parse": "(1)", "url": "http://a", "token_file": None}
    with pytest.raises(ValueError, match=naming(*names.split())):
        services.judge_call(spec)
