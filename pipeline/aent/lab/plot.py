"""The figures of ``aent lab``."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aent.entropy.controllers import ControllerSettings
    from aent.lab.bandit import Step as Answer
    from aent.lab.clamp_report import Bins
    from aent.lab.control import Goal
    from aent.lab.experiment import Curves
    from aent.lab.plant import Step

FLOOR = 1e-6  # of a relative difference
STYLES = {  # of an arm
    "none": ("#8a8a8a", "-"),
    "full": ("#1f6fb4", "-"),
    "clamped": ("#d9730d", "-"),
    "full_adaptive": ("#1f6fb4", "--"),
    "clamped_adaptive": ("#d9730d", "--"),
}


def draw_curves(curves: Curves, path: Path) -> None:
    """Write reward and entropy against steps to ``path`` (PNG): means over the seeds, with bands
    of one standard error; a column for each number of optimal answers."""
    from aent.lab.experiment import ARMS, mean_and_error

    settings = list(dict.fromkeys(run.optimal for run in curves.runs))
    figure = _figure(1 + 2.6 * len(settings), 5)
    axes = figure.subplots(2, len(settings), sharex=True, sharey="row", squeeze=False)
    rows = (("reward", curves.reward), ("entropy, nats per token", curves.entropy))
    for (label, values), row in zip(rows, axes, strict=True):
        row[0].set_ylabel(label)
        for optimal, axis in zip(settings, row, strict=True):
            for arm in ARMS:
                color, line = STYLES[arm]
                mean, error = mean_and_error(curves.of(values, arm, optimal))
                axis.plot(curves.steps, mean, color=color, linestyle=line, label=arm)
                axis.fill_between(
                    curves.steps, mean - error, mean + error, color=color, alpha=0.2, linewidth=0
                )
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylim(bottom=0)  # once all are drawn: the axes of a row share it
    for optimal, top, bottom in zip(settings, *axes, strict=True):
        top.set_title(f"{optimal} optimal")
        bottom.set_xlabel("step")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    _save(figure, path)


def draw_clamp(bins: Bins, path: Path) -> None:
    """Write the relative difference of entropies and of their gradients against the full entropy
    to ``path`` (PNG), a line for each rule."""
    from aent.lab.clamp import RULES, THRESHOLD

    figure = _figure(11, 5)
    axes = figure.subplots(1, 2, sharey=True)
    middles = [(low + high) / 2 for low, high in pairwise(bins.edges)]
    marks = {"drop_fraction": "-", "top_k": "--", "top_p": ":"}
    for axis, values, title in zip(
        axes, (bins.entropy, bins.gradient), ("entropy", "gradient of the entropy"), strict=True
    ):
        for column, rule in enumerate(RULES):
            shade = f"C{[r for r in RULES if r.kind == rule.kind].index(rule)}"
            line = values[:, column].clamp(min=FLOOR)
            axis.plot(middles, line, color=shade, linestyle=marks[rule.kind], label=str(rule))
        axis.axhline(THRESHOLD, color="#8a8a8a", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xlabel("full entropy, nats")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("difference by clamping, relative")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    _save(figure, path)


def draw_control(
    settings: ControllerSettings, goal: Goal, runs: dict[int, list[Step]], path: Path
) -> None:
    """Write entropy in its band, coefficient in its box and reward against steps to ``path``
    (PNG), a line for each seed."""
    from aent.entropy.controllers import annealing

    figure = _figure(8, 7.5)
    entropy, coefficient, reward = axes = figure.subplots(3, 1, sharex=True)
    for seed, steps in runs.items():
        entropy.plot([step.entropy for step in steps], linewidth=1, label=f"seed {seed}")
        coefficient.plot([step.coefficient for step in steps], linewidth=1)
        reward.plot([step.reward for step in steps], linewidth=1)
    words = f"band {goal.low:.3g} to {goal.high:.3g}"
    every = range(max(map(len, runs.values())))
    low, target, high = (
        [end * annealing(settings, step) for step in every]
        for end in (goal.low, goal.target, goal.high)
    )
    entropy.fill_between(every, low, high, color="#2f8f4e", alpha=0.15, label=words, linewidth=0)
    entropy.plot(target, color="#2f8f4e", linestyle="--", linewidth=0.8)
    for bound in (settings.min, settings.max):
        if bound is not None:
            coefficient.axhline(bound, color="#8a8a8a", linestyle="--", linewidth=0.8)
    coefficient.set_yscale("symlog", linthresh=1e-3)  # a coefficient may be 0
    coefficient.set_ylim(bottom=0)
    names = ("nats per token", "coefficient", "reward")
    for axis, name in zip(axes, names, strict=True):
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis is not coefficient:
            axis.set_ylim(bottom=0)
    reward.set_xlabel("step")
    figure.suptitle(settings.kind)
    figure.legend(*entropy.get_legend_handles_labels(), loc="outside right center", frameon=False)
    _save(figure, path)


def draw_bandit(runs: dict[tuple[str, int], list[Answer]], path: Path) -> None:
    """Write full entropy, coefficient and reward of every run against steps to ``path`` (PNG), a
    color for each arm."""
    figure = _figure(8, 7.5)
    axes = figure.subplots(3, 1, sharex=True)
    names = list(dict.fromkeys(arm for arm, _ in runs))
    for (arm, seed), steps in runs.items():
        label = arm if seed == min(s for a, s in runs if a == arm) else None
        for axis, field in zip(axes, ("entropy", "coefficient", "reward"), strict=True):
            values = [getattr(step, field) for step in steps]
            axis.plot(values, color=f"C{names.index(arm)}", linewidth=1, label=label)
    for axis, name in zip(axes, ("nats", "coefficient", "reward"), strict=True):
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format="png", dpi=90)
    unfinished.replace(path)
