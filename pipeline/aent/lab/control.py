"""``aent lab control``: how well a controller holds the entropy of a policy that learns.

Every seed is one policy: that of the compare recipes (``plant``), or a model fitted to a recorded
run (``fitted``). Only steps from ``SETTLING`` on count: until then the policy comes down from its
first 3.5 nats.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from aent.entropy.controllers import ControllerSettings, annealing, describe, held_interval
from aent.lab import plant as compare_plant
from aent.lab.fitted import Fitted
from aent.lab.plant import Step

SETTLING = 80  # steps that do not count; in a short run, half of its steps
WINDOW = 10  # steps of a mean
NEAR = 0.25  # as a share of the target: how far such a mean may lie from it
TARGET = 0.5  # nats, for kinds with neither target nor band


@dataclass(frozen=True)
class Plant:
    """The system that a controller is tried on.

    simulate: (settings, seed, steps, progress) -> steps, deterministically.
    """

    name: str
    simulate: Callable[[ControllerSettings, int, int, Callable[[range], Iterable[int]]], list[Step]]


def learning_plant(learning_rate: float | None) -> Plant:
    """The compare recipes' policy (``plant``), at their learning rate or another one."""
    rate = "" if learning_rate is None else f", learning rate {learning_rate:g}"

    def simulate(settings, seed, steps, progress):
        return compare_plant.simulate(settings, seed, steps, learning_rate, progress)

    return Plant(f"{compare_plant.PLANT}{rate}", simulate)


def fitted_plant(source: str, fitted: Fitted) -> Plant:
    """A recorded run's (``fitted``)."""
    return Plant(f"fitted to {source} ({fitted})", fitted.simulate)


@dataclass(frozen=True)
class Goal:
    """Where the entropy should be, in nats; for an annealed aim, at step 0."""

    target: float
    low: float
    high: float


@dataclass(frozen=True)
class Held:
    """How well it was held in one run: see ``COLUMNS``."""

    in_band: float
    log_error: float
    means_near: float
    noise: float
    reward: float


COLUMNS = (
    "steps in the band",
    "rms of ln(H / target)",
    f"{WINDOW}-step means within {NEAR:.0%}",
    "noise of one step",  # standard error of H over H
    "reward",
)


def goal(settings: ControllerSettings) -> Goal:
    """A band is [low, high] with its geometric mean as target; a target has its
    ``held_interval``, which is [0.3, 0.8] for 0.5 nats."""
    low, high, target = settings.low, settings.high, settings.target
    if target is not None and target > 0:
        return Goal(target, *held_interval(target, target))
    if low is not None and high is not None and low > 0:
        return Goal(math.sqrt(low * high), low, high)
    return Goal(TARGET, *held_interval(TARGET, TARGET))


def first_counted(steps: int) -> int:
    return min(SETTLING, steps // 2)


def held(run: Sequence[Step], settings: ControllerSettings) -> Held:
    """The statistics of one run of at least 20 steps. If the aim is annealed, each entropy is
    compared with the aim of its step."""
    aim, first = goal(settings), first_counted(len(run))
    counted = run[first:]
    factors = [annealing(settings, step) for step in range(first, len(run))]
    entropy = np.array([step.entropy for step in counted]) / np.array(factors)
    error = np.log(np.maximum(entropy, 1e-6) / aim.target)
    means = np.convolve(entropy, np.full(WINDOW, 1 / WINDOW), mode="valid")
    return Held(
        in_band=float(np.mean((entropy >= aim.low) & (entropy <= aim.high))),
        log_error=float(np.sqrt(np.mean(error**2))),
        means_near=float(np.mean(np.abs(means / aim.target - 1) <= NEAR)),
        noise=fmean(step.standard_error / max(step.entropy, 1e-6) for step in counted),
        reward=fmean(step.reward for step in counted),
    )


def run(
    settings: ControllerSettings, seeds: range, steps: int, plant: Plant, csv: Path | None
) -> dict[int, list[Step]]:
    """Run every seed, print the table (Markdown), write the requested files; progress to stderr."""
    from rich.console import Console
    from rich.progress import track

    aim, console = goal(settings), Console(stderr=True)
    print(f"{settings.kind}: {describe(settings)}")
    print(
        f"plant {plant.name}: target {aim.target:.3g} nats, band [{aim.low:.3g}, {aim.high:.3g}], "
        f"steps {first_counted(steps)} to {steps}\n"
    )
    runs = {}
    for seed in seeds:
        progress = partial(track, description=f"seed {seed}", console=console)
        runs[seed] = plant.simulate(settings, seed, steps, progress)
    print(table({seed: held(run, settings) for seed, run in runs.items()}))
    if csv is not None:
        write_csv(settings.kind, runs, csv)
    return runs


def table(found: dict[int, Held]) -> str:
    """Markdown: a row for each seed, and the mean over them."""
    rows = {str(seed): astuple(values) for seed, values in found.items()}
    rows["mean"] = tuple(map(fmean, zip(*rows.values(), strict=True)))
    lines = [f"| seed | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for name, values in rows.items():
        cells = ("–" if math.isnan(value) else f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_csv(kind: str, runs: dict[int, list[Step]], path: Path) -> None:
    """Columns kind, seed, step, entropy, coefficient, reward; every digit, one row per step."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["kind", "seed", "step", "entropy", "coefficient", "reward"])
        for seed, steps in runs.items():
            for number, step in enumerate(steps):
                reward = "" if math.isnan(step.reward) else step.reward
                rows.writerow([kind, seed, number, step.entropy, step.coefficient, reward])
