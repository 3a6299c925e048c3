"""The pages about a recipe's fields match the schema."""

import json
from pathlib import Path

import jsonschema
import pytest

from aent.recipe import load, reference

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))


def test_every_field_is_described() -> None:
    missing = [
        f"{part.path}.{entry.name}"
        for part in reference.parts()
        for entry in part.entries
        if not entry.text.endswith(".")
    ]
    assert missing == []


def test_the_committed_pages_are_the_schemas() -> None:
    assert (ROOT / "docs/recipe.md").read_text() == reference.markdown(), (
        "run: aent recipe --markdown > docs/recipe.md"
    )
    assert (ROOT / "recipes/recipe.schema.json").read_text() == reference.json_schema(), (
        "run: aent recipe --json-schema > recipes/recipe.schema.json"
    )


def test_defaults_types_and_bounds_are_told() -> None:
    entries = {f"{p.path}.{e.name}": e for p in reference.parts() for e in p.entries}
    staleness = entries["rollout.max_staleness"]
    assert (staleness.type, staleness.default, staleness.resume) == (
        "integer, at least 0",
        "0",
        "no",
    )
    share = entries["rollout.engine.gpu_memory_utilization"]
    assert share.type == "number, above 0, at most 1"
    assert entries["controller.initial"].default == "required"
    assert entries["task.graders[python].style"].type == "aent or verl or trl or trl_chat"
    assert entries["trainer.optimizer.betas"].type == "list of 2 numbers"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipes_name_the_schema_and_are_valid_under_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=../recipe.schema.json\n")
    jsonschema.validate(load._mapping(path), json.loads(reference.json_schema()))


def test_the_schema_refuses_what_a_recipe_may_not_say() -> None:
    schema = json.loads(reference.json_schema())
    data = {"name": "x", "model": {}, "controller": {"initial": 0.0}}
    jsonschema.validate(data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | {"rollouts": {}}, schema)
