"""A task with several sources: its questions, and their graders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aent.data.response import Response
from aent.models import model_source, tokenizer
from aent.orchestrator.questions import load_task
from aent.recipe.load import load as load_recipe
from aent.recipe.schema import ModelSection, TaskSection
from aent.runtime.environment import data_path
from aent.tasks import graders_of, load
from aent.tasks.judge import JudgePool
from wording import assert_names, naming

CHAINS = {
    "name": "chains",
    "kind": "reasoning_gym",
    "dataset": "chain_sum",
    "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "size": 20,
    "heldout": 3,
    "graders": [{"kind": "reasoning_gym"}],
}


def file(folder: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": name, "path": str(path), "heldout": 2, **more}


def section(*sources: dict[str, Any], **more: Any) -> TaskSection:
    given = {"graders": [{"kind": "last_number"}], **more, "sources": sources}
    return TaskSection.model_validate_json(json.dumps(given))


def numbers(*which: int) -> list[dict[str, Any]]:
    return [{"question": f"{i}?", "answer": i} for i in which]


def test_every_source_has_its_questions_and_no_two_the_same(tmp_path: Path) -> None:
    one = file(tmp_path, "one", numbers(*range(10)), instruction="Think.", system_prompt="Be.")
    again = file(tmp_path, "again", [
        *numbers(*range(4)),  # which the first one asks, with another instruction
        *numbers(*range(20, 30)),
    ], size=5)  # fmt: skip
    own = {"role": "system", "content": "Own."}
    talk = [own, {"role": "user", "content": "3 + 4?"}]
    talks = file(tmp_path, "talks", [{"question": talk, "answer": 7}], heldout=0)
    task = load(section(one, again, CHAINS, talks, instruction="Say."), seed=1)
    assert task.name == "one + again + chains + talks"
    by = {name: [q for q in task.train if q.source == name] for name in task.weights}
    assert {name: len(questions) for name, questions in by.items()} == {
        "one": 8, "again": 5, "chains": 20, "talks": 1
    }  # fmt: skip
    assert [q.source for q in task.heldout] == ["one"] * 2 + ["again"] * 2 + ["chains"] * 3
    everyone = task.train + task.heldout
    assert len({q.index for q in everyone}) == len({q.text for q in everyone}) == len(everyone)
    assert {q.prompt.partition("\n")[2] for q in by["one"]} == {"Think."}
    assert {q.prompt.rpartition("\n")[2] for q in by["again"] + by["chains"]} == {"Say."}
    assert {q.system for q in by["one"]} == {"Be."}
    assert by["talks"][0].turns("Other.") == ("3 + 4?\nSay.", "Own.", ())
    assert_names(
        " ".join(task.notes), "again: size=5", "of the 10 questions", "4 questions of again"
    )
    with pytest.raises(ValueError, match=naming("task.sources[1].heldout", "one.jsonl", 9)):
        load(section(one, {**one, "name": "copy", "heldout": 9}), seed=1)


def test_a_question_of_two_sources_is_the_first_ones(tmp_path: Path) -> None:
    one = file(tmp_path, "one", numbers(*range(6)))
    two = file(tmp_path, "two", numbers(*range(3, 12)))
    task = load(section(one, two), seed=0)
    both = task.train + task.heldout
    assert sorted(q.answer for q in both if q.source == "one") == list("012345")
    assert {int(q.answer) for q in both if q.source == "two"} == set(range(6, 12))
    (note,) = task.notes
    assert_names(note, "3 questions of two")


def test_each_sources_own_graders_judge_its_responses(tmp_path: Path) -> None:
    """In the real processes: one name may be of different graders, weights are the source's own,
    and the task's graders score suites' questions."""
    (tmp_path / "r.py").write_text("def f(response, question):\n    return 10.0\n")
    ten = {"kind": "python", "name": "same", "function": f"{tmp_path}/r.py:f", "weight": 2}
    one = file(tmp_path, "one", numbers(1, 2, 3), graders=[ten, {"kind": "last_number"}])
    two = file(tmp_path, "two", numbers(4, 5, 6),
               graders=[{"kind": "last_number", "name": "same", "weight": 3}])  # fmt: skip
    rows = [{"question": f"{i}!", "answer": i, "data_source": "ab"[i % 2]} for i in range(7, 13)]
    three = file(tmp_path, "three", rows, graders=[
        {"kind": "last_number", "data_sources": ["a"]}, {**ten, "data_sources": ["b"]}
    ])  # fmt: skip
    four = file(tmp_path, "four", numbers(13, 14, 15))
    mixed = section(one, two, three, four, CHAINS, graders=[{"kind": "last_number", "weight": 5}])
    task = load(mixed, seed=0)
    questions = [*task.train, *task.heldout]
    suite = load(TaskSection(kind="file", path=one["path"], heldout=0,
                             graders=mixed.graders), 0).train[0]  # fmt: skip
    questions.append(suite)
    responses = [Response(question.answer) for question in questions]
    with JudgePool(mixed) as judge:
        verdicts = judge.judge(questions, responses)
    wanted = {"one": 21.0, "two": 3.0, "four": 5.0, "chains": 1.0, "": 5.0}
    for question, verdict in zip(questions, verdicts):
        reward = wanted.get(question.source)
        if question.source == "three":
            reward = {"a": 1.0, "b": 20.0}[question.metadata["data_source"]]
        assert verdict.error == ""
        assert verdict.reward == reward
        names = [grader.name for grader in graders_of(mixed, question)]
        assert [grade.name for grade in verdict.grades] == names


@pytest.mark.slow
def test_a_source_that_nothing_is_left_of_is_named(tmp_path: Path) -> None:
    """A run's own way of loading: long prompts and references that cannot be read are left out."""
    section_ = ModelSection(bundled="tiny-qwen2")
    words = tokenizer.load(section_, model_source.resolve(section_))
    good = file(tmp_path, "good", numbers(*range(8)), heldout=0)
    long = file(tmp_path, "long", [{"question": "x" * 300, "answer": 1}], heldout=0)
    bad = file(tmp_path, "bad", [{"question": "y?", "answer": "5$ and $6$"}], heldout=0,
               graders=[{"kind": "math_verify"}])  # fmt: skip

    def loaded(*sources: dict[str, Any]) -> Any:
        given = {"graders": [{"kind": "last_number"}], "sources": sources}
        recipe = load_recipe(
            data_path("recipes/cpu/tiny.yaml"),
            [f"task={json.dumps(given)}", "rollout.max_prompt_tokens=100"],
        )
        with JudgePool(recipe.task) as judge:
            return load_task(recipe, words, judge, lambda: None)

    with pytest.raises(ValueError, match=naming("long", "rollout.max_prompt_tokens=100")):
        loaded(good, long)
    with pytest.raises(ValueError, match=naming("bad", "math_verify")):
        loaded(good, bad)
    few = file(tmp_path, "few", [*numbers(91), {"question": "x" * 300, "answer": 1}], heldout=0)
    with pytest.raises(ValueError, match=naming("rollout.prompts_per_step=4", "few", 1)):
        loaded(good, few)
