"""The figure of a run: reward, entropy with its band, and the coefficient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aent.entropy.controllers import ControllerSettings
from aent.recipe.schema import Recipe

if TYPE_CHECKING:
    from aent.entropy.controllers import ControllerReport
    from aent.tracking.recorded import Recorded

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#d9730d", "#2f8f4e", "#8a8a8a"
Metrics = Mapping[str, Mapping[int, float]]  # values by step, of each metric
DRAWN = (  # all that ``draw`` reads
    "reward/mean",
    "evaluation/accuracy",
    "policy/entropy",
    "policy/clamped_entropy",
    "policy/entropy_error",
    "controller/low",
    "controller/high",
    "controller/coefficient",
)


def draw(metrics: Metrics, recipe: Recipe, path: Path) -> None:
    """Write the figure to ``path`` (PNG), which is replaced as a whole. Safe in a thread."""
    figure, (reward, entropy, coefficient) = _figure(3)
    _line(reward, metrics.get("reward/mean"), BLUE, "mean reward", marker=".")
    accuracy = metrics.get("evaluation/accuracy")
    _line(reward, accuracy, GREEN, "held-out accuracy", marker="D", linestyle=":")
    _finish(reward, "reward")
    if recipe.measured == "clamped_entropy":
        _line(entropy, metrics.get("policy/entropy"), GREY, "entropy", linewidth=1)
        measured = metrics.get("policy/clamped_entropy")
        _entropy(entropy, measured, "clamped entropy", metrics)
    else:
        _entropy(entropy, metrics.get("policy/entropy"), "entropy", metrics)
    _line(coefficient, metrics.get("controller/coefficient"), ORANGE, "coefficient", marker=".")
    _coefficient(coefficient, ControllerSettings(**recipe.controller.model_dump()))
    _save(figure, recipe.name, path)


def draw_replay(recorded: Recorded, reports: Sequence[ControllerReport], path: Path) -> None:
    """Write a replay's figure: the recorded entropy, and the coefficients computed from it."""
    figure, (entropy, coefficient) = _figure(2)
    aims = {
        f"controller/{side}": {step: getattr(r, side) for step, r in enumerate(reports)}
        for side in ("low", "high")
    }
    _entropy(entropy, recorded.entropy, "recorded entropy", aims)
    logged = recorded.metrics.get("controller/coefficient")
    _line(coefficient, logged, GREY, "logged", linewidth=3, alpha=0.5)
    replayed = {step: report.coefficient for step, report in enumerate(reports)}
    _line(coefficient, replayed, ORANGE, "replayed", marker=".")
    _coefficient(coefficient, recorded.controller)
    _save(figure, f"replay: {recorded.controller.kind}", path)


def _figure(rows: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, sharex=True)


def _save(figure, title: str, path: Path) -> None:
    figure.suptitle(title)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)


def _line(axis, values: Mapping[int, float] | None, color, label, **style) -> None:
    if values:
        steps = sorted(values)
        axis.plot(steps, [values[s] for s in steps], color=color, label=label, **style)


def _finish(axis, label: str) -> None:
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9, loc="best")


def _entropy(axis, measured: Mapping[int, float] | None, label: str, metrics: Metrics) -> None:
    """Draw the measured entropy and the controller's aim: a band, or a line for a target."""
    low, high = (metrics.get(f"controller/{side}", {}) for side in ("low", "high"))
    steps = sorted(step for step in low if step in high)
    if steps:
        below, above = [low[s] for s in steps], [high[s] for s in steps]
        last = f"{below[-1]:.3g}"
        if below == above:
            axis.plot(steps, below, color=GREEN, linestyle="--", label=f"target {last}")
        else:
            words = f"band {last} to {above[-1]:.3g}"
            axis.fill_between(steps, below, above, color=GREEN, alpha=0.15, label=words)
    _line(axis, measured, BLUE, label, marker=".")
    error = metrics.get("policy/entropy_error", {})
    steps = sorted(step for step in measured or {} if step in error)
    if measured and steps:
        values, errors = [measured[s] for s in steps], [error[s] for s in steps]
        axis.errorbar(steps, values, errors, color=BLUE, alpha=0.4, linestyle="", linewidth=1)
    axis.set_ylim(bottom=0)
    _finish(axis, "nats per token")


def _coefficient(axis, settings: ControllerSettings) -> None:
    for bound in (settings.min, settings.max):
        if bound is not None:
            axis.axhline(bound, color=GREY, linestyle="--", linewidth=0.8)
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _finish(axis, "coefficient")
