"""Changes of a recipe on resume: each field has a rule, and each difference is found."""

from collections.abc import Iterator

import pytest

from aent.recipe.changes import Change, changes, rule_of
from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.recipe.section import Section
from wording import assert_names

TEXT = "name: x\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: .1}\n"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(TEXT)
    return lambda *overrides: load(tmp_path / "r.yaml", overrides)


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, rule_of(section, name)


def test_every_field_has_a_rule():
    rules = dict(fields(Recipe))
    assert set(rules.values()) == {"same", "warn", "free"}
    assert rules["seed"] == rules["model.path"] == rules["trainer.mini_batches"] == "same"
    assert rules["trainer.optimizer.lr"] == rules["controller.high"] == rules["steps"] == "warn"
    assert rules["trainer.tensor_parallel"] == rules["checkpoint.every"] == "free"
    assert rules["resume"] == rules["run_dir"] == rules["rollout.engine.port"] == "free"


def test_equal_recipes_have_no_changes(recipe):
    assert changes(recipe(), recipe()) == []


def test_each_difference_is_named_with_its_rule(recipe):
    found = changes(
        recipe("task.config={a: 1}"),
        recipe("trainer.optimizer.betas=[.9, .99]", "trainer.data_parallel=2", "task.config={}"),
    )
    assert found == [
        Change("task.config", {"a": 1}, {}, "same"),
        Change("trainer.data_parallel", 1, 2, "free"),
        Change("trainer.optimizer.betas", (0.9, 0.95), (0.9, 0.99), "warn"),
    ]
    assert_names(str(found[1]), "trainer.data_parallel", 1, 2)


def test_nothing_is_shown_as_nothing(recipe):
    (change,) = changes(recipe(), recipe("algorithm.dual_clip=3.0"))
    assert_names(str(change), "algorithm.dual_clip", "nothing", 3.0)
