"""The suggestion for a recorded run, and the effect of the suggested controller on a policy."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from typer.testing import CliRunner

from aent.cli.main import app
from aent.entropy.controllers import ControllerSettings
from aent.lab import plant
from aent.tracking import journal
from wording import assert_names


def aent(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def relaxing(steps: int, begin: float, end: float) -> list[float]:
    """An entropy that goes from ``begin`` to ``end``, a tenth of the way a step; noise of 0.02."""
    entropy, rng, seen = begin, random.Random(0), []
    for _ in range(steps):
        seen.append(max(0.0, entropy + rng.gauss(0, 0.02)))
        entropy += 0.1 * (end - entropy)
    return seen


def csv_of(path: Path, entropy: list[float]) -> Path:
    path.write_text("step,entropy\n" + "".join(f"{t},{h!r}\n" for t, h in enumerate(entropy)))
    return path


def suggested(output: str) -> ControllerSettings:
    """The controller as the printed YAML says it, which is also a recipe's override."""
    return ControllerSettings(**yaml.safe_load(output)["controller"])


def test_a_collapsing_policy_gets_a_target_on_its_way_and_a_decade_around_its_scale(tmp_path):
    seen = relaxing(60, 2.3, 0.05)
    done = aent("suggest", csv_of(tmp_path / "run.csv", seen), "controller.initial=0", "--max", 1.0)
    assert done.exit_code == 0, done.output
    settings = suggested(done.stdout)
    assert settings.kind == "log_pi"
    assert settings.target == pytest.approx(seen[0] ** 0.625 * 0.06**0.375, rel=0.1)
    assert (settings.min, settings.initial, settings.max) == (0.01, 0.1, 1.0)
    first = next(t for t, h in enumerate(seen) if h <= settings.target)
    assert settings.ramp_steps == pytest.approx(first, abs=1)
    assert len([line for line in done.stdout.splitlines() if line.startswith("# ")]) == 3


def test_an_exploding_policy_is_held_below_where_it_went(tmp_path):
    seen = relaxing(60, 0.5, 10.0)
    done = aent("suggest", csv_of(tmp_path / "run.csv", seen), "controller.initial=.5")
    settings = suggested(done.stdout)
    assert 0.5 < settings.target < 2
    assert settings.initial == 0.5  # the run's own: no gradients were recorded


def test_the_target_is_of_the_entropy_that_the_run_measured(tmp_path):
    seen = csv_of(tmp_path / "run.csv", relaxing(60, 2.3, 0.05))
    arguments = ["suggest", seen, "controller.initial=.1"]
    assert suggested(aent(*arguments).stdout).measure is None
    assert suggested(aent(*arguments, "controller.measure=full").stdout).measure == "full"


def test_a_policy_that_stays_is_held_where_it_is(tmp_path):
    rng = random.Random(1)
    seen = [0.5 + rng.gauss(0, 0.01) for _ in range(50)]
    done = aent("suggest", csv_of(tmp_path / "run.csv", seen), "controller.initial=.01")
    settings = suggested(done.stdout)
    assert settings.target == pytest.approx(0.5, abs=0.01)
    assert settings.ramp_steps == 10


@pytest.mark.parametrize(
    ("entropy", "arguments", "names"),
    [
        ([1.0] * 9, ["controller.initial=.1"], ("steps", 9, 10)),
        ([1.0] * 20, ["controller.initial=0"], ("--max",)),
        ([1.0] * 20, [], ("controller.initial",)),
        ([1.0] * 20, ["controller.initial=0", "--max", 0], ("--max", 0)),
        ([0.0] * 20, ["controller.initial=.1"], ("0 nats",)),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, entropy, arguments, names):
    done = aent("suggest", csv_of(tmp_path / "run.csv", entropy), *arguments)
    assert done.exit_code == 2
    assert_names(done.stderr, *names)
    assert done.stdout == ""


def run_folder(folder: Path, **metrics: list[float]) -> Path:
    """A run's folder with these metrics (a double underscore is a slash)."""
    (folder / "recipe.yaml").write_text(
        "name: x\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0.0}\n"
    )
    journal.append(
        folder / "journal.jsonl",
        [
            journal.Point(step, 0, key.replace("__", "/"), value)
            for key, values in metrics.items()
            for step, value in enumerate(values)
        ],
    )
    return folder


def recorded_run(folder: Path, steps: list[plant.Step]) -> Path:
    """The record of a run with coefficient 0 and these steps."""
    folder.mkdir()
    return run_folder(
        folder,
        policy__clamped_entropy=[step.entropy for step in steps],
        controller__coefficient=[0.0] * len(steps),
        gradient__product=[step.cross for step in steps],
        gradient__entropy=[math.sqrt(step.bonus_square) for step in steps],
    )


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [2e-4, 5e-4, 1e-3])
def test_the_proposal_holds_the_policy_that_it_was_made_for(tmp_path, learning_rate):
    """In closed loop: without a bonus the entropy is below 0.1 nats within twenty steps; under the
    proposal it stays near its target, and the coefficient inside its box."""
    alone = plant.simulate(ControllerSettings("constant", 0.0), 6, 20, learning_rate)
    assert alone[-1].entropy < 0.1
    done = aent("suggest", recorded_run(tmp_path / "run", alone))
    assert done.exit_code == 0, done.output
    settings = suggested(done.stdout)
    product, square = sum(s.cross for s in alone), sum(s.bonus_square for s in alone)
    assert settings.initial == pytest.approx(product / square, rel=0.05)
    held = plant.simulate(settings, 6, 60, learning_rate)[30:]
    means = [fmean(s.entropy for s in held[t : t + 10]) for t in range(0, 30, 10)]
    assert all(settings.target / 3 < mean < settings.target * 3 for mean in means), means
    at_the_ends = fmean(s.coefficient in (settings.min, settings.max) for s in held)
    assert at_the_ends < 0.5


def test_a_run_in_which_learning_kept_the_entropy_has_no_neutral_coefficient(tmp_path):
    source = run_folder(
        tmp_path,
        policy__clamped_entropy=relaxing(30, 1.0, 2.0),
        gradient__product=[-0.1] * 30,
        gradient__entropy=[2.0] * 30,
    )
    done = aent("suggest", source)
    assert done.exit_code == 2
    assert "gradient/product" in done.stderr
    assert suggested(aent("suggest", source, "--max", 2).stdout).initial == 0.2


def test_a_run_whose_coefficient_moved_is_refused(tmp_path):
    source = run_folder(
        tmp_path,
        policy__clamped_entropy=[1.0] * 30,
        controller__coefficient=[0.01] * 29 + [0.02],
    )
    done = aent("suggest", source)
    assert done.exit_code == 2
    assert_names(done.stderr, "coefficient", 0.01, 0.02)
