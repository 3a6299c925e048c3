"""``aent lab mdp``: its output, and what it refuses."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from aent.lab.experiment import ARMS, Task, learn
from wording import assert_names


def aent(*arguments: object):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_table_csv_and_plot(tmp_path: Path) -> None:
    file, plot = tmp_path / "curves.csv", tmp_path / "curves.png"
    options = ["--steps", 25, "--seeds", 2, "--csv", file, "--plot", plot]
    result = aent("lab", "mdp", "--optimal", 15, 2, *options)
    assert result.exit_code == 0, result.output
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["arm", "optimal", "seed", "step", "reward"]
    runs = defaultdict(list)
    for row in rows:
        runs[row["arm"], int(row["optimal"]), int(row["seed"])].append(row)
    assert set(runs) == {(arm, m, seed) for arm in ARMS for m in (15, 2) for seed in (0, 1)}
    assert all([int(row["step"]) for row in run] == [0, 10, 20, 25] for run in runs.values())
    for optimal in (15, 2):
        begun = {runs[arm, optimal, 0][0]["reward"] for arm in ARMS}
        assert len(begun) == 1  # every arm from the same policy
        last = {
            arm: np.mean([float(runs[arm, optimal, seed][-1]["reward"]) for seed in (0, 1)])
            for arm in ARMS
        }
        assert len(set(last.values())) == len(ARMS)  # and each goes its own way
        (line,) = (text for text in result.stdout.splitlines() if text.startswith(f"| {optimal} |"))
        shown = [float(cell.split("±")[0]) for cell in line.split("|")[2 : 2 + len(ARMS)]]
        np.testing.assert_allclose(shown, list(last.values()), atol=5e-4)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_controller_lowers_the_coefficient_of_a_policy_above_its_band() -> None:
    curves = learn([Task(15)], seeds=1, steps=60)
    entropy = {arm: curves.of(curves.entropy, arm, 15)[-1, 0] for arm in ARMS}
    assert entropy["none"] < entropy["full_adaptive"] < entropy["full"]
    assert entropy["none"] < entropy["clamped_adaptive"] < entropy["clamped"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--optimal", 300], "optimal 300"),
        (["--optimal", 15, 0], "optimal 0"),
        (["--csv", "nowhere/curves.csv"], "nowhere/curves.csv"),
        (["--csv", "."], "directory"),
        (["--plot", "/proc/curves.png"], "/proc/curves.png"),
        (["--seeds", 0], "seeds"),
        (["--steps", "many"], "steps"),
    ],
)
def test_refusals(arguments: list[object], names: str) -> None:
    result = aent("lab", "mdp", *arguments)
    assert result.exit_code == 2
    assert_names(result.stderr, *names.split())
    assert result.stdout == ""  # before any work
