"""The data that a run keeps for MLflow's own pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aent.data.question import Question
from aent.data.rollout import Grade, Rollout, Verdict
from aent.data.sample import Sample
from aent.orchestrator import entities
from aent.orchestrator.tables import MAX_TEXT
from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.tasks import Task
from aent.tracking.traced import TracedGrade, TracedStep
from aent.tracking.tracker import Tracker

RECIPE = """
name: trial
steps: 7
model: {bundled: tiny-qwen2}
controller: {initial: 0}
task:
  graders: [{kind: last_number, weight: 0.5}]
tracking: {system_metrics_every_s: 0, traces: 2, register_as: mine}
"""


class Kept(Tracker):
    """A tracker that keeps what it is given, and knows no MLflow."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, str]] = {}

    def log_entity(self, entity, name, make) -> None:
        self.kept[entity] = name, make()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load(tmp_path / "r.yaml")


def test_traces_are_of_several_prompts_and_bounded_in_number_and_length(recipe) -> None:
    grades = (
        Grade("last_number", 1.0, {"a": 0.5}, seconds=0.25),
        Grade("of an earlier recipe", None, error="timeout"),
    )
    samples = [
        Sample([1, 2], [3] * n, [-0.5] * n, [*range(n)], "stop", n // 3, 40 + n, reward=0.5)
        for n in (1, 2, 3, 4)
    ]
    texts = ["x" * (MAX_TEXT + 100)] * 4
    rollout = Rollout(samples, ["prompt"] * 4, texts, [Verdict(0.5, "", grades)] * 4)
    kept = Kept()
    entities.log_traces(kept, recipe, 5, rollout, [0.1, 0.2, 0.3, 0.4])
    name, text = kept.kept["traces"]
    step = TracedStep.from_json(text)
    assert (name, step.step) == ("traces/step_000005.json", 5)
    first, second = step.responses
    assert (first.sample, first.group, first.item, first.entropy) == (0, 0, 41, 0.1)
    assert (second.sample, second.group, second.item, second.entropy) == (2, 1, 43, 0.3)
    assert (second.first_version, second.version, second.tokens) == (0, 2, 3)
    assert (second.prompt_tokens, second.logprob) == (2, -0.5)
    assert MAX_TEXT < len(second.response) < MAX_TEXT + 50
    assert second.grades == (
        TracedGrade("last_number", "last_number", 0.5, 1.0, {"a": 0.5}, "", 0.25),
        TracedGrade("of an earlier recipe", None, None, None, {}, "timeout", 0.0),
    )


def test_no_traces_where_the_recipe_wants_none(recipe) -> None:
    tracking = recipe.tracking.model_copy(update={"traces": 0})
    sample = Sample([1], [2], [0.0], [0], "stop", 0, 0)
    kept = Kept()
    entities.log_traces(
        kept,
        recipe.model_copy(update={"tracking": tracking}),
        0,
        Rollout([sample], ["p"], ["r"], [Verdict(0.0)]),
        [0.0],
    )
    assert kept.kept == {}


def test_data_sets_say_where_the_questions_are_from(recipe, tmp_path) -> None:
    task = Task("chain_sum", [Question(0, "1 + 1?", "2")], [Question(1, "1 + 2?", "3")])
    kept, again = Kept(), Kept()
    entities.log_datasets(kept, recipe, task)
    (training, heldout) = json.loads(kept.kept["datasets"][1])
    assert (training["context"], heldout["context"]) == ("training", "evaluation")
    assert training["source_type"] == "reasoning_gym"
    assert json.loads(training["source"])["name"] == "chain_sum"
    assert "graders" not in json.loads(training["source"])
    changed = Task("chain_sum", [Question(0, "1 + 1?", "3")], task.heldout)
    entities.log_datasets(again, recipe, changed)
    assert again.kept["datasets"][0] != kept.kept["datasets"][0]  # another file, and both are sent

    (tmp_path / "q.jsonl").write_text("")
    section = recipe.task.model_copy(update={"kind": "file", "path": str(tmp_path / "q.jsonl")})
    entities.log_datasets(again, recipe.model_copy(update={"task": section}), task)
    (training, _) = json.loads(again.kept["datasets"][1])
    assert training["source_type"] == "local"
    assert json.loads(training["source"])["uri"] == str(tmp_path / "q.jsonl")


def test_the_policy_is_what_lies_in_its_folder(recipe, tmp_path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "model.safetensors").write_text("12345")
    kept = Kept()
    entities.log_policy(kept, recipe, folder)
    name, text = kept.kept["policy"]
    assert name == "policies/step_000007.json"
    assert json.loads(text) == {
        "name": "trial", "folder": "policy", "steps": 7, "files": {"model.safetensors": 5},
        "register_as": "mine",
    }  # fmt: skip
