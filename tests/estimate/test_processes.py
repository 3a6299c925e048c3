"""The description of a run's processes before it starts."""

import pytest

from aent.estimate.processes import describe
from aent.recipe.load import load
from wording import assert_names

BASE = """
name: x
model: {bundled: smollm2-135m-instruct}
controller: {initial: 0}
rollout: {prompts_per_step: 8, samples_per_prompt: 8}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(BASE)
    return lambda *overrides: load(tmp_path / "r.yaml", overrides)


def test_every_rank_has_a_place_and_a_part(recipe):
    sizes = "trainer.tensor_parallel=3", "trainer.data_parallel=2", "trainer.pipeline_parallel=2"
    text = describe(recipe(*sizes))
    (whole,) = (line for line in text.splitlines() if "12 ranks" in line)
    assert_names(whole, "tensor 3", "data 2", "pipeline 2")
    (third,) = (line for line in text.splitlines() if "rank 3" in line)
    assert_names(third, "tensor 0", "data 1", "pipeline 0", "layers 0-16", "embedding")
    (sixth,) = (line for line in text.splitlines() if "rank 6" in line)
    assert_names(sixth, "tensor 0", "data 0", "pipeline 1", "layers 17-29", "loss")
    assert_names(text, "134.5 M", "port")
    assert "context" not in text
    shared = describe(recipe("trainer.context_parallel=2", "trainer.data_parallel=2"))
    (second,) = (line for line in shared.splitlines() if "rank 1" in line)
    assert_names(second, "tensor 0", "context 1", "data 0", "pipeline 0")


def test_engines_of_others_and_the_samples_of_a_step_are_named(recipe):
    assert "http://a:1" in describe(recipe("rollout.engines=0", "rollout.urls=['http://a:1']"))
    more = "entropy_controls=[{kind: reroll, target: 1, share: .25, limit: 9}]"
    said = describe(recipe(more, "algorithm.advantage=group_mean"))
    assert_names(said, "8 prompts", "8 samples", 64, 9, "1 mini-batches")
