"""The suggestion for a recorded run, and what becomes of the same policy under it."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from aent.cli.main import app
from aent.entropy.controllers import ControllerSettings, initial_state, update
from aent.tracking import journal


def aent(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def policy(settings: ControllerSettings, steps: int, floor: float, gain: float) -> list[float]:
    """A policy whose entropy relaxes from 2.3 nats, a tenth of the way a step, to floor + gain *
    coefficient; noise of .02."""
    entropy, state, rng, seen = 2.3, initial_state(settings), random.Random(0), []
    for _ in range(steps):
        entropy += 0.1 * (floor + gain * state.coefficient - entropy)
        seen.append(max(0.0, entropy + rng.gauss(0, 0.02)))
        state, _ = update(settings, state, seen[-1])
    return seen


def csv_of(path: Path, entropy: list[float]) -> Path:
    path.write_text("step,entropy\n" + "".join(f"{t},{h!r}\n" for t, h in enumerate(entropy)))
    return path


def suggested(output: str) -> ControllerSettings:
    """The controller as the printed YAML says it, which is also a recipe's override."""
    return ControllerSettings(**yaml.safe_load(output)["controller"])


CONSTANT = ControllerSettings("constant", 0.0)


@pytest.mark.parametrize("gain", [1.0, 2.0, 5.0])
def test_a_collapsing_policy_is_held_in_the_suggested_band(tmp_path, gain):
    source = csv_of(tmp_path / "run.csv", policy(CONSTANT, 60, floor=0.05, gain=gain))
    done = aent("suggest", source, "controller.initial=0", "--max", 1.0)
    assert done.exit_code == 0, done.output
    settings = suggested(done.stdout)
    # half and three quarters of the way back up from .05 to 2.3 or so, on a log scale
    assert 0.05 < settings.low < settings.high < 2.3
    assert settings.low == pytest.approx(math.sqrt(2.0 * 0.06), rel=0.4)
    assert settings.warmup_steps > 0
    assert settings.max == 1.0
    assert len([line for line in done.stdout.splitlines() if line.startswith("# ")]) == 3
    under_control = policy(settings, 300, floor=0.05, gain=gain)
    last = under_control[200:]
    outside = [h for h in last if not settings.low * 0.9 <= h <= settings.high * 1.1]
    assert not outside


def test_an_exploding_policy_is_held_below_where_it_went(tmp_path):
    constant = ControllerSettings("constant", 0.5)
    seen = policy(constant, 60, floor=1.0, gain=20.0)
    done = aent("suggest", csv_of(tmp_path / "run.csv", seen), "controller.initial=.5")
    settings = suggested(done.stdout)
    assert settings.high < seen[-1]
    assert settings.max == 2.0  # four times the run's own
    assert "four times the run's own coefficient" in done.stdout
    last = policy(settings, 400, floor=1.0, gain=20.0)[200:]
    assert max(last) < 1.3 * settings.high


def test_a_policy_that_stays_gets_a_band_around_it(tmp_path):
    rng = random.Random(1)
    seen = [0.5 + rng.gauss(0, 0.01) for _ in range(50)]
    done = aent("suggest", csv_of(tmp_path / "run.csv", seen), "controller.initial=.01")
    settings = suggested(done.stdout)
    assert settings.low < min(seen) < max(seen) < settings.high
    assert settings.warmup_steps == 0


@pytest.mark.parametrize(
    ("entropy", "arguments", "sentence"),
    [
        ([1.0] * 9, ["controller.initial=.1"], "9 measured steps; 10 are needed"),
        ([1.0] * 20, ["controller.initial=0"], "give --max"),
        ([1.0] * 20, [], "controller.initial is missing"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, entropy, arguments, sentence):
    done = aent("suggest", csv_of(tmp_path / "run.csv", entropy), *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
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


def test_the_box_ends_where_the_bonus_pulls_as_hard_as_the_policy_loss(tmp_path):
    source = run_folder(
        tmp_path,
        policy__clamped_entropy=policy(CONSTANT, 30, floor=0.05, gain=1.0),
        controller__coefficient=[0.0] * 30,
        gradient__policy=[0.3, 0.6, 0.9] * 10,
        gradient__entropy=[2.0] * 30,
    )
    done = aent("suggest", source)
    assert done.exit_code == 0, done.output
    assert suggested(done.stdout).max == 0.3
    assert "pulls as hard on the logits as the policy loss does (median over 30 steps)" in (
        done.stdout
    )


def test_a_run_whose_coefficient_moved_is_refused(tmp_path):
    source = run_folder(
        tmp_path,
        policy__clamped_entropy=[1.0] * 30,
        controller__coefficient=[0.01] * 29 + [0.02],
    )
    done = aent("suggest", source)
    assert done.exit_code == 2
    assert "the run's coefficient moved, from 0.01 to 0.02" in done.stderr
