"""The questions that a run keeps, for any data."""

import json

import pytest

from aent.models import model_source, tokenizer
from aent.orchestrator.questions import load_task
from aent.recipe.load import load
from aent.recipe.schema import ModelSection, Recipe
from aent.runtime.environment import data_path
from aent.tasks.judge import JudgePool
from wording import assert_names


@pytest.fixture(scope="module")
def words() -> tokenizer.Tokenizer:
    section = ModelSection(bundled="tiny-qwen2")
    return tokenizer.load(section, model_source.resolve(section))


def left_by_length(recipe: Recipe, words: tokenizer.Tokenizer) -> list[int]:
    with JudgePool(recipe.task) as judge:
        task = load_task(recipe, words, judge, lambda: None)
    return [
        len(words.chat_prompt(q.prompt, recipe.task.system_prompt))
        for q in [*task.train, *task.heldout]
    ]


@pytest.mark.slow
def test_generated_questions_that_are_too_long_are_left_out_and_counted(words, capsys):
    config = "task.config={min_terms: 2, max_terms: 6, min_digits: 1, max_digits: 4}"
    given = [config, "task.size=100", "task.heldout=20"]
    recipe = load(data_path("recipes/cpu/tiny.yaml"), [*given, "rollout.max_prompt_tokens=500"])
    every = left_by_length(recipe, words)
    assert "rollout.max_prompt_tokens" not in capsys.readouterr().out
    limit = sorted(every)[len(every) // 2]
    short = load(data_path("recipes/cpu/tiny.yaml"), [*given, f"rollout.max_prompt_tokens={limit}"])
    assert left_by_length(short, words) == [n for n in every if n <= limit]
    said = capsys.readouterr().out
    too_long = sum(n > limit for n in every)
    assert_names(said, too_long, "chain_sum", "rollout.max_prompt_tokens", limit)


@pytest.mark.slow
def test_references_that_math_verify_cannot_read_are_left_out_by_row(words, tmp_path, capsys):
    answers = ["5$ and $6", "7", r"\frac{1}{2}", "\N{FULLWIDTH DIGIT ONE}", "east", "nan"]
    rows = [json.dumps({"question": f"{i}?", "answer": a}) for i, a in enumerate(answers)]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    recipe = load(
        data_path("recipes/cpu/tiny.yaml"),
        [
            f"task={{kind: file, path: {tmp_path}/q.jsonl, heldout: 1}}",
            "task.graders=[{kind: math_verify}]",
            "rollout.max_prompt_tokens=500",
            "rollout.prompts_per_step=2",
        ],
    )
    with JudgePool(recipe.task) as judge:
        task = load_task(recipe, words, judge, lambda: None)
    kept = {q.answer for q in [*task.train, *task.heldout]}
    assert kept == {"7", r"\frac{1}{2}", "east"}
    said = capsys.readouterr().out
    assert_names(said, "3 questions", "task.graders")
    assert_names(said.partition("q.jsonl")[2], "row 1", 4, 6)
