"""The picture of a run: reward, entropy in its band, and the coefficient that holds it there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from aent.recipe.schema import Recipe
from aent.tracking.journal import Point

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#d9730d", "#2f8f4e", "#8a8a8a"


def draw(points: Iterable[Point], recipe: Recipe, path: Path) -> None:
    """Write the picture to ``path`` (PNG), which is whole at any time. Safe in a thread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, dict[int, float]] = defaultdict(dict)
    for point in points:
        series[point.key][point.step] = point.value
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    reward, entropy, coefficient = figure.subplots(3, 1, sharex=True)
    _reward(reward, series)
    _entropy(entropy, series, recipe)
    _coefficient(coefficient, series, recipe)
    figure.suptitle(recipe.name)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)


def _line(axis, series, key, color, label, **style) -> None:
    values = series.get(key)
    if values:
        steps = sorted(values)
        axis.plot(steps, [values[s] for s in steps], color=color, label=label, **style)


def _finish(axis, label: str) -> None:
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9, loc="best")


def _reward(axis, series) -> None:
    _line(axis, series, "reward/mean", BLUE, "mean reward", marker=".")
    _line(
        axis, series, "evaluation/accuracy", GREEN, "held-out accuracy", marker="D", linestyle=":"
    )
    _finish(axis, "reward")


def _entropy(axis, series, recipe: Recipe) -> None:
    low, high = recipe.controller.low, recipe.controller.high
    if low is not None and high is not None:
        axis.axhspan(low, high, color=GREEN, alpha=0.15, label=f"band {low:g} to {high:g}")
    if recipe.entropy.measure == "clamped":
        _line(axis, series, "policy/entropy", GREY, "entropy", linewidth=1)
        _line(axis, series, "policy/clamped_entropy", BLUE, "clamped entropy", marker=".")
    else:
        _line(axis, series, "policy/entropy", BLUE, "entropy", marker=".")
    axis.set_ylim(bottom=0)
    _finish(axis, "nats per token")


def _coefficient(axis, series, recipe: Recipe) -> None:
    for bound in (recipe.controller.min, recipe.controller.max):
        if bound is not None:
            axis.axhline(bound, color=GREY, linestyle="--", linewidth=0.8)
    _line(axis, series, "controller/coefficient", ORANGE, "coefficient", marker=".")
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _finish(axis, "coefficient")
