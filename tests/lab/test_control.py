"""``aent lab control``: the policy that learns, its statistics, and the command's output."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from aent.cli.main import app
from aent.entropy.controllers import ControllerSettings, initial_state, update
from aent.lab import control, plant
from aent.lab.plant import Step
from aent.tasks.choice import choose

LOG_PI = ControllerSettings("log_pi", 0.1, target=0.5, ramp_steps=5)


def aent(*arguments: object):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_a_step_is_what_the_formulas_say() -> None:
    """Entropy and both gradients with respect to the logits, in float64; Adam's first move."""
    policy = plant._Plant(seed=3, learning_rate=1e-3, drives="bonus")
    questions = choose(policy.task, 0, 16, 3).questions
    ids, last, rewards = policy.prompts.of(questions)
    assert rewards.sum(dim=1).tolist() == [1.0] * 16  # one token is the answer
    with torch.no_grad():
        logits = policy._logits(ids, last).double()
    p = logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    drawn = torch.multinomial(
        p.float(), 16, replacement=True, generator=torch.Generator().manual_seed(3)
    )
    reward = rewards.gather(1, drawn).double()
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
    one = torch.nn.functional.one_hot(drawn, p.shape[1]).double()
    loss = -(advantage[..., None] * (one - p[:, None])).sum(1) / drawn.numel()
    bonus = -p * (p.log() + entropy[:, None]) / 16
    before = [parameter.clone() for parameter in policy.parameters]
    step = policy.learn(0, coefficient=0.1)
    assert step.entropy == pytest.approx(entropy.mean().item(), rel=1e-5)
    assert step.standard_error == pytest.approx(entropy.std().item() / 4, rel=1e-4)
    assert step.reward == reward.mean().item()
    assert step.cross == pytest.approx((loss * bonus).sum().item(), rel=1e-3, abs=1e-8)
    assert step.bonus_square == pytest.approx(bonus.square().sum().item(), rel=1e-4)
    moved = [(a - b).abs().max().item() for a, b in zip(before, policy.parameters)]
    assert max(moved) == pytest.approx(1e-3, rel=1e-2)


def test_the_same_seed_gives_the_same_numbers_and_the_controller_is_the_trainers() -> None:
    run = plant.simulate(LOG_PI, seed=4, steps=12)
    assert plant.simulate(LOG_PI, seed=4, steps=12) == run
    assert plant.simulate(LOG_PI, seed=5, steps=2) != run[:2]
    state = initial_state(LOG_PI)
    for step in run:
        assert step.coefficient == state.coefficient
        state, _ = update(LOG_PI, state, step.entropy)
    assert len({step.coefficient for step in run}) > 5
    slow = plant.simulate(LOG_PI, seed=4, steps=6, learning_rate=1e-6)
    assert max(abs(step.entropy - slow[0].entropy) for step in slow) < 0.2  # the questions differ


@pytest.mark.parametrize(
    ("drives", "coefficient"), [("advantage_zeta", 1.0), ("gradient_share", 0.5)]
)
def test_what_else_is_driven_keeps_entropy(drives: str, coefficient: float) -> None:
    none, strong = (
        plant.simulate(ControllerSettings("constant", c, drives=drives), seed=2, steps=8)
        for c in (0, coefficient)
    )
    assert none[0].entropy == strong[0].entropy
    assert sum(s.entropy for s in none) < sum(s.entropy for s in strong)


def test_a_bonus_keeps_entropy() -> None:
    none, strong = (
        plant.simulate(ControllerSettings("constant", c), seed=2, steps=20)[-5:] for c in (0, 0.5)
    )
    assert max(s.entropy for s in none) < min(s.entropy for s in strong)


def steps_of(entropies: list[float], reward: float = 0.5) -> list[Step]:
    return [Step(h, 0.1 * h, 0.0, reward, 0.0, 0.0) for h in entropies]


def test_the_statistics_by_hand() -> None:
    """40 steps, of which the last 20 count: ten at 0.5 nats and ten at 1 nat."""
    aim = control.goal(LOG_PI)
    assert (aim.low, aim.high) == pytest.approx((0.3, 0.8))
    found = control.held(steps_of([9.0] * 20 + [0.5] * 10 + [1.0] * 10), LOG_PI)
    assert found.in_band == 0.5
    assert found.log_error == pytest.approx(math.log(2) / math.sqrt(2))
    # of the eleven means of ten steps, those with at most two steps at 1 nat: 0.5, 0.55, 0.6
    assert found.means_near == pytest.approx(3 / 11)
    assert found.noise == pytest.approx(0.1)
    assert found.reward == 0.5
    assert control.first_counted(250) == 80


def test_an_aim_that_is_annealed_is_followed() -> None:
    """A run on its target all the way is held all the way."""
    settings = ControllerSettings("log_pi", 0.1, target=0.5, anneal_to=0.5, anneal_steps=40)
    on_it = [0.5 * (1 - 0.5 * step / 40) for step in range(40)]
    found = control.held(steps_of(on_it), settings)
    assert (found.in_band, found.means_near) == (1, 1)
    assert found.log_error == pytest.approx(0, abs=1e-12)
    # 0.425 nats leave [0.3, 0.8] times the factor where that is below 0.53: in the last two steps
    assert control.held(steps_of([0.425] * 40), settings).in_band == 0.9


def test_a_band_is_its_own_goal() -> None:
    band = ControllerSettings("band", 0.1, low=0.2, high=0.8, step_size=0.1, min=0, max=1)
    assert control.goal(band).target == pytest.approx(0.4)
    assert (control.goal(band).low, control.goal(band).high) == (0.2, 0.8)
    assert control.goal(ControllerSettings("constant", 0.1)) == control.Goal(0.5, 0.3, 0.8)


def test_table_csv_and_plot(tmp_path: Path) -> None:
    file, plot = tmp_path / "runs.csv", tmp_path / "runs.png"
    fields = ["target=.5", "ramp_steps=5", "initial=.1"]
    options = ["--steps", 20, "--seeds", 2, "--first-seed", 4, "--csv", file, "--plot", plot]
    done = aent("lab", "control", "log_pi", *fields, *options)
    assert done.exit_code == 0, done.output
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["kind", "seed", "step", "entropy", "coefficient", "reward"]
    assert [(int(r["seed"]), int(r["step"])) for r in rows] == [
        (seed, step) for seed in (4, 5) for step in range(20)
    ]
    again = plant.simulate(LOG_PI, seed=5, steps=20)
    for row, step in zip(rows[20:], again, strict=True):
        assert float(row["entropy"]) == step.entropy
        assert float(row["coefficient"]) == step.coefficient
        assert float(row["reward"]) == step.reward
    cells = {
        line.split("|")[1].strip(): [float(cell) for cell in line.split("|")[2:-1]]
        for line in done.stdout.splitlines()
        if line.startswith(("| 4", "| 5", "| mean"))
    }
    found = control.held(again, LOG_PI)
    want = [found.in_band, found.log_error, found.means_near, found.noise, found.reward]
    np.testing.assert_allclose(cells["5"], want, atol=5e-4)
    np.testing.assert_allclose(cells["mean"], np.mean([cells["4"], cells["5"]], 0), atol=1e-3)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bend"], "controller.kind"),
        (["log_pi"], "controller.target"),
        (["log_pi", "traget=.5"], "controller.traget"),
        (["log_pi", "target=.5", "measure=clamped"], "controller.measure"),
        (["dual", "target=.5"], "controller.step_size"),
        (["log_pi", "target=.5", "drives=upper_clip"], "controller.drives"),
        (["log_pi", "target=.5", "drives=gradient_share"], "controller.max"),
        (["log_pi", "target=4.7"], "controller.target"),  # ln 100 is 4.61
        (["band", "low=5", "high=6", "step_size=.1", "min=0", "max=1"], "controller.low"),
        (["log_pi", "target=.5", "--learning-rate", "nan"], "--learning-rate"),
        (["log_pi", "target=.5", "--learning-rate", 0], "--learning-rate"),
        (["log_pi", "target=.5", "--steps", 19], "steps"),
        (["log_pi", "target=.5", "--first-seed", -1], "first-seed"),
        (["log_pi", "target=.5", "--csv", "nowhere/runs.csv"], "nowhere/runs.csv"),
    ],
)
def test_refusals(arguments: list[object], named: str) -> None:
    done = aent("lab", "control", *arguments)
    assert done.exit_code == 2
    assert named in done.stderr
    assert done.stdout == ""
