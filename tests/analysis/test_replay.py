"""A replay gives what the run logged, from every kind of source."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.recipe.load import dump, load
from aent.tracking.tracker import Tracker
from wording import assert_names

RECIPE = """
name: recorded
model: {bundled: tiny-qwen2}
controller:
  {kind: band, initial: .01, low: .4, high: .8, step_size: .0731, min: 0, max: .1, warmup_steps: 2}
"""
ENTROPY = [1.2, 1.1, 0.9, math.nan, 0.71, 1 / 3, 0.21, 0.16, 0.1, 0.55, 0.93]


def aent(*arguments: str):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def column(text: str, name: str) -> list[float]:
    return [float(row[name]) for row in rows(text)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, list[float], list[float]]:
    """A run folder as a run leaves it (its MLflow store beside it), and the logged coefficients."""
    run_dir = tmp_path_factory.mktemp("runs") / "recorded"
    run_dir.mkdir()
    path = run_dir / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = load(path)
    path.write_text(dump(recipe))
    settings = ControllerSettings(**recipe.controller.model_dump())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker(run_dir, recipe)
        state, reports = controllers.initial_state(settings), []
        for step, entropy in enumerate(ENTROPY):
            state, report = controllers.update(settings, state, entropy)
            reports.append(report)
            tracker.log(
                step,
                {
                    "policy/clamped_entropy": entropy,
                    "policy/entropy": 2 * entropy,
                    "controller/coefficient": report.coefficient,
                    "controller/next_coefficient": report.next_coefficient,
                },
            )
        assert tracker.finish("FINISHED", timeout_s=300)
    return run_dir, [r.coefficient for r in reports], [r.next_coefficient for r in reports]


def test_a_run_folder_gives_what_was_logged(recorded):
    run_dir, coefficients, following = recorded
    done = aent("replay", run_dir)
    assert done.exit_code == 0, done.output
    assert column(done.stdout, "coefficient") == pytest.approx(coefficients, abs=1e-12)
    assert column(done.stdout, "next_coefficient") == pytest.approx(following, abs=1e-12)
    assert [int(row["step"]) for row in rows(done.stdout)] == list(range(len(ENTROPY)))
    assert column(done.stdout, "entropy") == pytest.approx(ENTROPY, nan_ok=True, abs=0)
    caution, difference = done.stderr.splitlines()
    assert_names(caution, "policy")
    assert_names(difference, "coefficients", 0)


def test_mlflow_gives_the_same(recorded, monkeypatch):
    run_dir, _, _ = recorded
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    done = aent("replay", run_id)
    assert done.exit_code == 0, done.output
    assert done.stdout == aent("replay", run_dir).stdout
    missing = aent("replay", "0" * 32)
    assert missing.exit_code == 2
    assert "0" * 32 in missing.stderr


def test_a_csv_needs_the_whole_controller_and_gives_the_same(recorded, tmp_path):
    run_dir, _, _ = recorded
    path = tmp_path / "entropy.csv"
    path.write_text(
        "entropy,step,note\n" + "".join(f"{h!r},{t},x\n" for t, h in enumerate(ENTROPY))
    )
    fields = RECIPE.partition("controller:")[2].strip()
    done = aent("replay", path, f"controller={fields}", "--plot", tmp_path / "replay.png")
    assert done.exit_code == 0, done.output
    assert done.stdout == aent("replay", run_dir).stdout
    assert (tmp_path / "replay.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    without = aent("replay", path)
    assert without.exit_code == 2
    assert_names(without.stderr, "controller.initial")


def test_another_controller_is_another_recipe(recorded):
    """Also of another kind: the recipe's settings that belong only to the old kind are dropped."""
    run_dir, _, _ = recorded
    done = aent("replay", run_dir, "controller.step_size=0")
    assert set(column(done.stdout, "coefficient")) == {0.01}
    assert len(done.stderr.splitlines()) == 1  # no difference: another one was not logged
    done = aent("replay", run_dir, "controller.kind=target", "controller.target=.6")
    settings = ControllerSettings(
        "target", 0.01, target=0.6, step_size=0.0731, min=0, max=0.1, warmup_steps=2
    )
    state, expected = controllers.initial_state(settings), []
    for entropy in ENTROPY:
        state, report = controllers.update(settings, state, entropy)
        expected.append(report.next_coefficient)
    assert column(done.stdout, "next_coefficient") == expected


def test_log_pi_takes_the_recorded_band_or_a_target_and_the_default_box(recorded):
    run_dir, _, _ = recorded
    for given, fields in (
        (["controller.initial=.02"], {"low": 0.4, "high": 0.8}),
        (["controller.initial=.02", "controller.target=.6"], {"target": 0.6}),
    ):
        done = aent("replay", run_dir, "controller.kind=log_pi", *given)
        assert done.exit_code == 0, done.output
        settings = ControllerSettings("log_pi", 0.02, **fields)
        assert (settings.min, settings.max) == (1e-3, 1)
        state, expected = controllers.initial_state(settings), []
        for entropy in ENTROPY:
            state, report = controllers.update(settings, state, entropy)
            expected.append(report.next_coefficient)
        assert column(done.stdout, "next_coefficient") == expected


def test_the_controllers_own_measure_is_what_is_replayed(recorded):
    run_dir, _, _ = recorded
    done = aent("replay", run_dir, "controller.measure=full")
    assert column(done.stdout, "entropy") == pytest.approx([2 * h for h in ENTROPY], nan_ok=True)


def test_steps_that_are_not_in_the_csv_are_missing_measurements(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("step,entropy\n1,.3\n3,\n4,.3\n")
    band = "controller={kind: band, initial: 0, low: .4, high: 1, step_size: 1, min: 0, max: 1}"
    done = aent("replay", path, band)
    assert column(done.stdout, "next_coefficient") == pytest.approx([0, 0.1, 0.1, 0.1, 0.2])
    assert [row["entropy"] for row in rows(done.stdout)] == ["", "0.3", "", "nan", "0.3"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("step,loss\n0,1\n", "column entropy"),
        ("step,entropy\n0,1\n0,2\n", "line 3 step 0"),
        ("step,entropy\n0,1\n-1,2\n", "line 3 step -1"),
        ("step,entropy\n0,much\n", "line 2 0,much"),
        ("step,entropy\n0,1\n1,-0.5\n", "line 3 -0.5"),
        ("step,entropy\n", "entropy"),
    ],
)
def test_a_bad_csv_is_one_sentence(tmp_path, text, names):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    done = aent("replay", path, "controller.initial=0")
    assert done.exit_code == 2
    assert_names(done.stderr, path, *names.split())
    assert done.stdout == ""


@pytest.mark.parametrize(
    "content", [b"\x7fELF\xff\xfe", b"step,entropy\n0," + b"1" * 200_000 + b"\n"]
)
def test_what_is_no_csv_is_one_sentence(tmp_path, content):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    done = aent("replay", path, "controller.initial=0")
    assert done.exit_code == 2
    assert str(path) in done.stderr
    assert done.stdout == ""


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_printed(recorded):
    run_dir, _, _ = recorded
    for place in (run_dir / "nowhere" / "x.png", run_dir):
        done = aent("replay", run_dir, "--plot", place)
        assert done.exit_code == 2
        assert str(place) in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["nowhere"], "nowhere CSV MLflow"),
        (["."], "recipe.yaml"),
        (["RUN", "trainer.optimizer.lr=1"], "trainer.optimizer.lr=1 controller"),
        (["RUN", "controller.hihg=1"], "controller.hihg controller.high"),
        (["RUN", "controller.high=.1"], "controller.low 0.4 controller.high 0.1"),
        (["RUN", "controller.kind=dual"], "controller.kind dual controller.target"),
    ],
)
def test_a_bad_source_or_override_is_one_sentence(recorded, arguments, names):
    run_dir, _, _ = recorded
    done = aent("replay", *[str(run_dir) if a == "RUN" else a for a in arguments])
    assert done.exit_code == 2
    assert_names(done.stderr, *names.split())
