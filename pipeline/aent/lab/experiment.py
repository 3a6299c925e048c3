"""``aent lab mdp``: the paper's small experiment, every arm from the same policies.

Each update adds ``STEP_SIZE`` times the exact gradient of

    expected reward + coefficient * sum over states of visits * entropy

to the logits. On average a trainer's loss does the same, but with means over an answer's tokens
instead of sums. An arm has an entropy, and one of the trainer's own controllers of the coefficient.
The paper (arXiv 2509.03493) publishes no step size, no coefficient and, for this experiment, no
controller. All constants here are ours; docs/lab.md says how they were chosen, and has the results.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.lab.mdp import Floats, Task, draw, exact

STEP_SIZE = 10.0
COEFFICIENT = 0.115  # of the constant arm, and the controller's first one
KEPT = 1_000  # actions of the clamped entropy's set
EVERY = 10  # updates between two recorded points

_CONSTANT = ControllerSettings("constant", COEFFICIENT)
_BAND = ControllerSettings(
    "band", COEFFICIENT, low=0.5, high=1.5, step_size=1e-4, min=0.0, max=2 * COEFFICIENT
)


@dataclass(frozen=True)
class Arm:
    """kept: size of the set whose entropy is rewarded and measured; None for all actions."""

    kept: int | None
    controller: ControllerSettings


ARMS = {
    "none": Arm(None, ControllerSettings("constant", 0.0)),
    "full": Arm(None, _CONSTANT),
    "clamped": Arm(KEPT, _CONSTANT),
    "full_adaptive": Arm(None, _BAND),
    "clamped_adaptive": Arm(KEPT, _BAND),
}

# Reward after 4,000 steps in the paper's figure, read off by eye: none, full, clamped.
PUBLISHED = {
    15: ".24 / .36 / .80",
    10: ".20 / .32 / .60",
    5: "gain 0 / .24",
    1: ".20 / .20 / .44",
}


@dataclass(frozen=True)
class Run:
    arm: str
    optimal: int
    seed: int


@dataclass(frozen=True)
class Curves:
    """reward, entropy: [point, run], before the update of steps[point]; entropy: of the whole
    policy, nats per token."""

    runs: list[Run]
    steps: list[int]
    reward: Floats
    entropy: Floats

    def of(self, values: Floats, arm: str, optimal: int) -> Floats:
        """The columns of one arm and setting: [point, seed]."""
        chosen = [r.arm == arm and r.optimal == optimal for r in self.runs]
        return values[:, chosen]


def run(tasks: list[Task], seeds: int, steps: int, csv: Path | None) -> Curves:
    """Run every arm, print the table (Markdown), write the requested files; progress to stderr."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    curves = learn(
        tasks, seeds, steps, progress=lambda all_steps: track(all_steps, "steps", console=console)
    )
    print(table(curves))
    if csv is not None:
        write_csv(curves, csv)
    return curves


def learn(
    tasks: list[Task],
    seeds: int,
    steps: int,
    arms: Mapping[str, Arm] = ARMS,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Curves:
    """Train every arm on every task and seed, all at once.

    progress: iterates over the steps, and may report progress. Step t of the curves is before the
    update that leads to step t + 1.
    """
    drawn = [(task, seed) for task in tasks for seed in range(seeds)]
    first = draw([task for task, _ in drawn], [seed for _, seed in drawn])
    policies = first.repeated(len(arms))
    runs = [Run(name, task.optimal, seed) for name in arms for task, seed in drawn]
    settings = [arms[run.arm].controller for run in runs]
    kept = np.array([arms[run.arm].kept or tasks[0].actions for run in runs])
    states = [controllers.initial_state(each) for each in settings]
    points, reward, entropy = [], [], []
    for step in progress(range(steps + 1)):
        now = exact(policies, policies.keep(kept))
        if step % EVERY == 0 or step == steps:
            points.append(step)
            reward.append(now.value)
            entropy.append(now.mean_entropy)
        coefficient = np.array([state.coefficient for state in states])
        bonus = coefficient[:, None, None] * now.bonus_gradient
        policies.logits += STEP_SIZE * (now.value_gradient + bonus)
        measured = now.mean_kept_entropy.tolist()
        updated = map(controllers.update, settings, states, measured)
        states = [state for state, _ in updated]
    return Curves(runs, points, np.array(reward), np.array(entropy))


def mean_and_error(values: Floats) -> tuple[Floats, Floats]:
    """Mean over the last axis, and its standard error; NaN for one seed."""
    number = values.shape[-1]
    if number == 1:
        return values.mean(axis=-1), np.full(values.shape[:-1], math.nan)
    return values.mean(axis=-1), values.std(axis=-1, ddof=1) / math.sqrt(number)


def table(curves: Curves) -> str:
    """Markdown: the reward at the last step, mean over seeds and its standard error."""
    lines = [
        f"| optimal answers | {' | '.join(ARMS)} | paper's figure: none / full / clamped |",
        "|---|" + "---|" * (len(ARMS) + 1),
    ]
    for optimal in dict.fromkeys(run.optimal for run in curves.runs):
        cells = []
        for arm in ARMS:
            mean, error = mean_and_error(curves.of(curves.reward, arm, optimal)[-1])
            cells.append(f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}"))
        lines.append(f"| {optimal} | {' | '.join(cells)} | {PUBLISHED.get(optimal, '')} |")
    return "\n".join(lines)


def write_csv(curves: Curves, path: Path) -> None:
    """Columns arm, optimal, seed, step, reward; every digit, one row per run and recorded step."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["arm", "optimal", "seed", "step", "reward"])
        for column, run in enumerate(curves.runs):
            for point, step in enumerate(curves.steps):
                reward = float(curves.reward[point, column])
                rows.writerow([run.arm, run.optimal, run.seed, step, reward])
