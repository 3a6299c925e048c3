import json

import pytest

from aent.evaluation import suites
from aent.recipe.schema import Recipe
from aent.tasks.sources import SOURCES
from wording import naming


def test_every_suite_of_a_file_says_where_to_get_it(tmp_path):
    for name, suite in suites.SUITES.items():
        if suite.dataset is None:
            assert name in SOURCES
            with pytest.raises(FileNotFoundError) as caught:
                suites.questions(suite, tmp_path)
            assert SOURCES[name].where in str(caught.value)
            assert f"aent data {name} FILE... --out {tmp_path}/{name}.jsonl" in str(caught.value)


@pytest.mark.parametrize("name", [n for n, s in suites.SUITES.items() if s.dataset])
def test_reasoning_gym_suites_are_the_same_questions_every_time(name):
    first = suites.questions(suites.find(name, ["limit=20"]))
    assert len({q.prompt for q in first}) == 20
    assert suites.questions(suites.find(name))[:20] == first
    assert all("<answer>" in q.prompt for q in first)


def test_questions_of_a_file(tmp_path):
    rows = [{"question": "1+1?", "answer": "2", "level": 3}, {"question": "2+2?", "answer": 4}]
    (tmp_path / "amc.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    first, second = suites.questions(suites.find("amc"), tmp_path)
    assert first.prompt == f"1+1?\n{suites.INSTRUCTION}"
    assert (first.answer, first.metadata) == ("2", {"level": 3})
    assert (second.index, second.answer) == (1, "4")
    (only,) = suites.questions(suites.find("amc", ["instruction=null", "limit=1"]), tmp_path)
    assert only.prompt == "1+1?"


def test_changes_are_typed_and_checked():
    suite = suites.find("aime24", ["samples=8", "top_k=20", "temperature=1"])
    assert (suite.samples, suite.top_k, suite.temperature, suite.top_p) == (8, 20, 1.0, 0.95)
    for change, names in (
        ("samples=0", "samples 1 0"),
        ("top_p=true", "top_p true"),
        ("limit=1.5", "limit 1.5"),
        ("temperature=0", "samples 32 temperature 0"),
    ):
        with pytest.raises(ValueError, match=naming("aime24", *names.split())):
            suites.find("aime24", [change])
    with pytest.raises(ValueError, match=naming("'aime25'", "aime24")):
        suites.find("aime25")


def test_the_suite_of_a_recipes_held_out_questions():
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"bundled": "tiny-qwen2"},
            "controller": {"initial": 0.0},
            "task": {
                "heldout": 4,
                "graders": [{"kind": "last_number"}],
                "instruction": "Be short.",
            },
            "rollout": {"max_response_tokens": 12},
            "evaluation": {"samples": 2, "temperature": 0.6, "top_k": 20},
        }
    )
    suite = suites.of_recipe(recipe, ["samples=3"])
    assert (suite.samples, suite.top_k, suite.max_tokens) == (3, 20, 12)
    assert suite.instruction == "Be short."
    none = recipe.model_copy(update={"task": recipe.task.model_copy(update={"heldout": 0})})
    with pytest.raises(ValueError, match=r"task\.heldout=0"):
        suites.of_recipe(none)
