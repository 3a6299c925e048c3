"""The sentence that names a run's bottleneck."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aent.analysis import bottleneck
from aent.cli.main import app
from aent.recipe.load import dump, load
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.tracking import journal
from aent.tracking.journal import Point
from wording import assert_names

STEPS = 3
BASE = {
    "time/total": 10.0, "time/sample": 4.0, "time/engines_busy": 3.0, "time/score": 0.5,
    "time/train": 4.5, "time/sync": 1.0, "time/trainer_idle": 4.0,
    "time/engines_idle": 7.0, "response/length_mean": 10.0, "response/length_max": 20.0,
}  # fmt: skip


def recipe(*overrides: str) -> Recipe:
    return load(data_path("recipes/cpu/tiny.yaml"), list(overrides))


def series(**changes: float) -> dict[str, dict[int, float]]:
    """The first step is another one: it is not counted."""
    values = BASE | {key.replace("__", "/"): value for key, value in changes.items()}
    return {
        key: {0: 100.0} | dict.fromkeys(range(1, STEPS), value) for key, value in values.items()
    }


AHEAD = ("rollout.max_staleness=1", "algorithm.importance=truncated_token")


@pytest.mark.parametrize(
    ("overrides", "changes", "words"),
    [
        ((), {}, "training 4.5 10.0 45% engines 70% rollout.max_staleness"),
        ((), {"compute__bubble_share": 0.3, "compute__train_mfu": 0.4}, "training pipeline 30%"),
        ((), {"compute__bubble_share": 0.1, "compute__train_mfu": 0.4}, "training MFU 0.40"),
        ((), {"time__train": 2.0}, "generation 3.0 trainer 40%"),
        ((), {"time__train": 2.0, "response__length_max": 50.0}, "generation longest 5.0 times"),
        ((), {"time__train": 2.0, "engine__preemptions": 1.0}, "generation key-value cache"),
        ((), {"time__train": 2.0, "time__engines_busy": 1.0}, "grading 3.0 task.judge_processes=1"),
        (AHEAD, {}, "training 45%"),
        (AHEAD, {"time__train": 3.0}, "waiting ahead 4.0 trainer 40%"),
        ((), {"time__sync": 5.0}, "transfer of weights 5.0"),
        # an evaluation between two steps is neither the step's nor its engines' time
        (
            (),
            {"time__total": 20.0, "time__evaluate": 10.0, "time__engines_busy": 13.0},
            "training 4.5 10.0 45%",
        ),
    ],
)
def test_the_largest_part_is_named_with_its_cause(
    overrides: tuple[str, ...], changes: dict[str, float], words: str
) -> None:
    told = bottleneck.sentence(recipe(*overrides), series(**changes))
    assert_names(told, *words.split())
    assert told.startswith("The bottleneck is ")
    assert told.count(". ") == 0


def test_sampling_ahead_is_no_advice_where_trainer_and_engines_take_turns() -> None:
    told = bottleneck.sentence(recipe("rollout.placement=colocated"), series())
    assert_names(told, "training", "45%")
    assert "rollout.max_staleness" not in told


def test_a_run_without_a_step_says_so() -> None:
    assert_names(bottleneck.sentence(recipe(), {}), "No", "step")


def test_steps_with_an_evaluation_are_left_out_and_older_runs_have_no_split() -> None:
    found = series()
    found["time/evaluate"] = {1: 50.0}
    found["time/engines_busy"][1] = 52.0
    found["time/total"][1] = 60.0
    of_step = bottleneck.seconds(recipe(), found)
    assert of_step is not None
    assert (of_step.parts["generate"], of_step.parts["grade"], of_step.total) == (3.0, 1.0, 10.0)
    del found["time/engines_busy"]
    older = bottleneck.seconds(recipe(), found)
    assert older is not None
    assert older.parts["generate"] == 4.0
    assert "grade" not in older.parts


def test_parts_are_the_step() -> None:
    found = bottleneck.seconds(recipe(), series())
    assert found is not None
    assert sum(found.parts.values()) == found.total == 10.0


def test_the_command_tells_of_one_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump(recipe()))
    points = [
        Point(step, 0, key, value)
        for key, values in (series() | {"policy/clamped_entropy": {1: 1.0}}).items()
        for step, value in values.items()
    ]
    journal.append(tmp_path / "journal.jsonl", points)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    told = done.output.splitlines()
    assert told[-1] == bottleneck.sentence(recipe(), series())
    assert_names(told[0], "4.50", "45.0%", "training")
    refused = CliRunner().invoke(app, ["report", str(tmp_path), "--baseline", "x"])
    assert refused.exit_code == 2
    assert_names(refused.output, "--baseline")
