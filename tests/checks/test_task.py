"""Faults of sources and of a curriculum that are reported before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aent.checks.recipe import check
from aent.recipe.load import RecipeError, load
from aent.runtime.environment import data_path
from wording import assert_names

Faults = Callable[..., list[str]]


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Faults of the tiny recipe with another task; HERE is a folder with files."""
    rows = [{"question": f"{i}?", "answer": str(i), "data_source": "a"} for i in range(12)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "w.jsonl").write_text('{"question": "x?", "answer": "east"}\n' * 2)
    (tmp_path / "folder").mkdir()

    def of(task: str, *overrides: str) -> list[str]:
        text = task.replace("HERE", str(tmp_path))
        given = [f"task={text}", f"run_dir={tmp_path}/run", "rollout.prompts_per_step=4"]
        try:
            return check(load(data_path("recipes/cpu/tiny.yaml"), [*given, *overrides]))
        except RecipeError as error:
            return str(error).splitlines()

    return of


GOOD = "name: a, path: HERE/q.jsonl, heldout: 2"
NUMBER = "graders: [{kind: last_number}]"


def sources(*each: str, more: str = NUMBER) -> str:
    listed = ", ".join(f"{{{source}}}" for source in each)
    return f"{{{more}, sources: [{listed}]}}"


def test_a_good_mixture_has_no_fault(faults: Faults) -> None:
    chains = "name: chain_sum, kind: reasoning_gym, graders: [{kind: reasoning_gym}]"
    assert faults(sources(GOOD, chains)) == []


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (sources(f"{GOOD}, weight: 0"), "task.sources[0].weight"),
        (sources(f"{GOOD}, weight: -1"), "task.sources[0].weight"),
        (sources(f"{GOOD}, weigth: 2"), "task.sources[0].weigth task.sources[0].weight"),
        (
            sources(f"{GOOD}, columns: {{questoin: a}}"),
            "task.sources[0].columns.questoin task.sources[0].columns.question",
        ),
        (
            sources(f"{GOOD}, graders: [{{kind: last_number, wieght: 2}}]"),
            "task.sources[0].graders[0].last_number.wieght "
            "task.sources[0].graders[0].last_number.weight",
        ),
        (sources("name: a b"), "task.sources[0].name"),
        (sources("path: x"), "task.sources[0].name"),
        (sources(GOOD, GOOD), "task.sources[1].name a"),
        (sources(GOOD, more=f"{NUMBER}, heldout: 3"), "task.heldout task.sources"),
        (sources(GOOD, more=f"{NUMBER}, path: x"), "task.path task.sources"),
        (sources(GOOD, more=f"{NUMBER}, kind: file"), "task.kind task.sources"),
        (sources("name: a"), "task.sources[0].kind=file task.sources[0].path"),
        (sources(f"{GOOD}, dataset: x"), "task.sources[0].dataset task.sources[0].kind=file"),
        (sources(f"{GOOD}, config: {{a: 1}}"), "task.sources[0].config task.sources[0].kind=file"),
        (
            sources("name: chain_sum, kind: reasoning_gym, path: x, split: test"),
            "task.sources[0].path task.sources[0].kind=reasoning_gym",
        ),
        (sources("name: a, path: HERE/none.jsonl"), "task.sources[0].path none.jsonl"),
        (sources("name: a, path: HERE/folder"), "task.sources[0].path folder"),
        (
            sources(GOOD, "name: b, path: HERE/q.jsonl, columns: {question: problem}"),
            "task.sources[1].path q.jsonl 'problem' task.columns",
        ),
        (sources(GOOD, "name: b, path: HERE/w.jsonl"), "task.sources[1].heldout w.jsonl"),
        (
            sources(GOOD, "name: b, path: HERE/w.jsonl, heldout: 0"),
            "task.sources[1].graders last_number w.jsonl 'east'",
        ),
        (
            sources(GOOD, "name: chain_sums, kind: reasoning_gym"),
            "task.sources[1].dataset 'chain_sums' 'chain_sum'",
        ),
        (
            sources(GOOD, "name: chain_sum, kind: reasoning_gym, config: {min_term: 1}"),
            "task.sources[1].config 'min_term' 'min_terms'",
        ),
        (sources(f"{GOOD}, size: 3"), "rollout.prompts_per_step=4 task.sources[0].size=3 4"),
        (sources("name: a, path: HERE/q.jsonl, heldout: 9"), "rollout.prompts_per_step=4 a 3"),
        (
            sources(f"{GOOD}, graders: [{{kind: last_number, weight: 0}}]"),
            "task.sources[0].graders[0].weight",
        ),
        (
            sources(f"{GOOD}, graders: [{{kind: last_number}}, {{kind: last_number}}]"),
            "task.sources[0].graders[1].name last_number",
        ),
        (
            sources(f"{GOOD}, graders: [{{kind: reasoning_gym}}]"),
            "task.sources[0].graders[0] reasoning_gym task.sources[0].kind=file",
        ),
        (
            sources(f"{GOOD}, graders: [{{kind: last_number, data_sources: [b]}}]"),
            "task.sources[0].graders 'a' row",
        ),
        (
            sources(f"{GOOD}, graders: [{{kind: python, function: 'HERE/none.py:f'}}]"),
            "task.sources[0].graders none.py",
        ),
        (
            sources(GOOD, more="graders: [{kind: last_number}, {kind: last_number, name: b, "
                    "data_sources: [b]}]"),
            "task.graders b",
        ),
        ("{kind: file, path: HERE/q.jsonl, config: {a: 1}}", "task.config task.kind=file"),
        ("{split: test}", "task.split task.kind=reasoning_gym"),
    ],
)  # fmt: skip
def test_faults_of_sources_are_one_sentence(faults: Faults, task: str, names: str) -> None:
    found = faults(task)
    assert found
    assert_names(found[0], *names.split())


@pytest.mark.parametrize(
    ("curriculum", "names"),
    [
        ("{}", "task.curriculum"),
        ("{retry_after: 3}", "task.curriculum"),
        ("{low: .6, high: .4}", "task.curriculum.low=0.6 task.curriculum.high=0.4"),
        ("{low: .3, high: .45}", "task.curriculum low=0.3 high=0.45 rollout.samples_per_prompt=4"),
        ("{low: 1.5}", "task.curriculum.low"),
        ("{replay: 2}", "task.curriculum.replay"),
        ("{order: easy}", "task.curriculum.order"),
        ("{retry_after: 0}", "task.curriculum.retry_after"),
        ("{lo: 0.1}", "task.curriculum.lo task.curriculum.low"),
    ],
)
def test_faults_of_a_curriculum_are_one_sentence(
    faults: Faults, curriculum: str, names: str
) -> None:
    (found,) = faults(sources(GOOD, more=f"{NUMBER}, curriculum: {curriculum}"))
    assert_names(found, *names.split())
    text = "task.curriculum." + curriculum.strip("{}").replace(": ", "=", 1)
    if curriculum.count(":") == 1:  # the same as an override
        (again,) = faults(sources(GOOD), text)
        assert_names(again, *names.split())
