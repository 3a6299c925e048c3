"""A plant fitted to a run: its numbers are found again, its likelihood is the dense one."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from aent.entropy.controllers import ControllerSettings
from aent.lab import fitted
from aent.lab.fitted import Fitted, fit
from aent.lab.plant import Step
from aent.recipe.load import dump, resolve
from aent.tracking import journal
from aent.tracking.journal import Point
from aent.tracking.recorded import SourceError
from wording import assert_names, naming

TRUTH = Fitted(
    first=math.log(2), low=math.log(0.05), high=math.log(3), drift=-0.2, gain=2.0, gain_error=0.0,
    lag=3.0, leak=0.0, process_noise=0.05, measurement_noise=0.15,
)  # fmt: skip
LOG_PI = ControllerSettings("log_pi", 0.05, target=0.5, ramp_steps=10)


def series(steps: list[Step]) -> tuple[dict[int, float], dict[int, float]]:
    return tuple(  # type: ignore[return-value]
        {number: getattr(step, name) for number, step in enumerate(steps)}
        for name in ("entropy", "coefficient")
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_answer_of_a_controlled_run_is_found_again(seed: int) -> None:
    found = fit(*series(TRUTH.simulate(LOG_PI, seed, 400)))
    assert abs(found.gain - TRUTH.gain) < 3 * found.gain_error < 1.5
    assert found.neutral == pytest.approx(0.1, rel=0.25)
    assert 1 <= found.lag <= 8
    assert found.measurement_noise == pytest.approx(0.15, rel=0.3)
    assert found.first == pytest.approx(math.log(2), abs=0.5)


def test_a_loop_on_the_fitted_plant_is_held_as_on_the_true_one() -> None:
    found = fit(*series(TRUTH.simulate(LOG_PI, 3, 400)))
    means = [
        np.mean([math.log(step.entropy) for step in plant.simulate(LOG_PI, 9, 200)[100:]])
        for plant in (TRUTH, found)
    ]
    assert means == pytest.approx([math.log(0.5)] * 2, abs=0.15)
    assert TRUTH.simulate(LOG_PI, 9, 20) == TRUTH.simulate(LOG_PI, 9, 20)


def test_the_filters_likelihood_is_that_of_the_whole_covariance() -> None:
    """Sum of squared innovations and of log variances, against the dense normal distribution."""
    rng = np.random.default_rng(0)
    logs, inputs = rng.normal(size=13), rng.uniform(0.5, 1.5, 13)
    lag, leak, ratio, a, gain = 2.0, 0.1, 3.0, 0.3, -0.7
    errors, variance = fitted._innovations(
        logs, inputs, np.array([lag]), np.array([leak]), np.array([ratio])
    )
    innovations = errors[:, 0] @ [1, -a, -gain]
    stay, kept = 1 - leak, math.exp(-1 / lag)
    mean, filtered, expected = 0.0, inputs[0], []
    for value in inputs[:-1]:
        filtered = kept * filtered + (1 - kept) * value
        mean = stay * mean + a + gain * filtered
        expected.append(mean)
    steps = np.arange(1, 13)
    covariance = ratio * np.eye(12) + ratio * stay ** (steps[:, None] + steps)  # y_0, known by x_0
    for noise in range(12):  # enters before step noise + 1
        effect = np.where(steps > noise, stay ** (steps - 1.0 - noise), 0.0)
        covariance += np.outer(effect, effect)
    apart = logs[1:] - logs[0] - expected
    square = apart @ np.linalg.solve(covariance, apart)
    assert (innovations**2 / variance[:, 0]).sum() == pytest.approx(square)
    assert np.log(variance).sum() == pytest.approx(np.linalg.slogdet(covariance)[1])


def test_steps_without_a_measurement_are_passed_over() -> None:
    entropy, coefficient = series(TRUTH.simulate(LOG_PI, 0, 400))
    for step in range(50, 400, 7):
        entropy[step] = math.nan
    del entropy[200], coefficient[201]
    found = fit(entropy, coefficient)
    assert abs(found.gain - TRUTH.gain) < 3 * found.gain_error


def test_a_run_that_cannot_tell_is_refused() -> None:
    entropy, _ = series(TRUTH.simulate(LOG_PI, 0, 100))
    with pytest.raises(SourceError, match="coefficient"):
        fit(entropy, dict.fromkeys(range(100), 0.1))
    with pytest.raises(SourceError, match=naming(20, fitted.LEAST_STEPS)):
        fit(*series(TRUTH.simulate(LOG_PI, 0, 20)))


def recorded_run(folder: Path, steps: list[Step]) -> Path:
    folder.mkdir()
    recipe = {"name": "trial", "model": {}, "controller": {"initial": 0.05}, "entropy": {}}
    (folder / "recipe.yaml").write_text(dump(resolve(recipe, "x", [])))
    journal.append(
        folder / "journal.jsonl",
        [
            Point(number, 0, key, value)
            for number, step in enumerate(steps)
            for key, value in (
                ("policy/clamped_entropy", step.entropy),
                ("controller/coefficient", step.coefficient),
            )
        ],
    )
    return folder


def test_a_controller_is_tried_on_a_run_folder(tmp_path: Path) -> None:
    source = recorded_run(tmp_path / "run", TRUTH.simulate(LOG_PI, 0, 300))
    file = tmp_path / "out.csv"
    command = ["lab", "control", "log_pi", "target=.5", "--run", str(source), "--seeds", "2"]
    done = CliRunner().invoke(app, [*command, "--steps", "60", "--csv", str(file)])
    assert done.exit_code == 0, done.output
    assert_names(done.stdout, source, "neutral")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 120
    assert {row["reward"] for row in rows} == {""}
    again = fit(*series(TRUTH.simulate(LOG_PI, 0, 300)))
    settings = ControllerSettings("log_pi", 0.1, target=0.5)
    want = [step.entropy for step in again.simulate(settings, 1, 60)]
    assert [float(row["entropy"]) for row in rows[60:]] == want


def test_refusals(tmp_path: Path) -> None:
    still = [Step(step.entropy, 0, 0.1, 0, 0, 0) for step in TRUTH.simulate(LOG_PI, 0, 60)]
    run = recorded_run(tmp_path / "run", still)
    for options, named in (
        (["--run", str(run)], "coefficient"),
        (["--run", str(tmp_path / "none")], str(tmp_path / "none")),
        (["--run", str(run / "journal.jsonl")], "--run"),  # a CSV too has no coefficients
        (["--run", str(run), "--learning-rate", "1e-3"], "--learning-rate"),
    ):
        done = CliRunner().invoke(app, ["lab", "control", "log_pi", "target=.5", *options])
        assert done.exit_code == 2, options
        assert named in done.stderr
        assert done.stdout == ""
