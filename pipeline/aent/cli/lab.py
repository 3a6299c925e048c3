"""``aent lab ...``: experiments on entropy control that need only a CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aent.cli.refusals import refuse, refuse_unwritable

if TYPE_CHECKING:
    from aent.lab.control import Plant

lab = typer.Typer(
    help="Experiments on entropy control that take minutes on a CPU.",
    no_args_is_help=True,
)


@lab.command()
def mdp(
    optimal: Annotated[
        list[int] | None,
        typer.Option(help="Numbers of optimal answers; default: --optimal 15 10 5 1."),
    ] = None,
    more_optimal: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Exact gradient steps.")] = 4000,
    seeds: Annotated[int, typer.Option(min=1, help="Initial policies for each setting.")] = 5,
    csv: Annotated[
        Path | None, typer.Option(help="Also write arm,optimal,seed,step,reward (CSV).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curves (PNG).")] = None,
) -> None:
    """Repeat the paper's small experiment: five arms on a token MDP with 100,000 actions.

    Example: aent lab mdp --optimal 15 1 --plot mdp.png
    """
    from aent.lab import experiment

    settings = [*(optimal or []), *(more_optimal or [])] or list(experiment.PUBLISHED)
    refuse_unwritable(csv, plot)
    try:
        tasks = [experiment.Task(number) for number in dict.fromkeys(settings)]
    except ValueError as error:
        refuse([f"--optimal: {error}"])
    curves = experiment.run(tasks, seeds, steps, csv)
    if plot is not None:
        from aent.lab.plot import draw_curves

        draw_curves(curves, plot)


@lab.command()
def control(
    kind: Annotated[str, typer.Argument(help="The controller's kind.", metavar="KIND")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            help="Its fields: target=0.5 ramp_steps=30 ... (default: initial=0.1).",
            metavar="[key=value]...",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of policies.")] = 1,
    first_seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first policy; then one more each.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=20, help="Updates of each policy.")] = 200,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate; default: that of the compare recipes.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="A run's folder or MLflow id: use a model fitted to its entropy.",
            metavar="SOURCE",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Also write kind,seed,step,entropy,coefficient,reward (CSV)."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result (PNG).")] = None,
) -> None:
    """Measure how well a controller holds the entropy of a learning policy.

    The policy is that of the compare recipes, in one process: about ten seconds for each seed. With
    --run it is a model fitted to your own run, which takes no time.

    Example: aent lab control log_pi target=0.5 --seeds 4
    """
    from aent.checks.controls import driven, unreachable
    from aent.entropy.controllers import ControllerSettings, faults
    from aent.recipe.load import RecipeError, resolve

    named = [f"controller.{field}" for field in fields or []]
    nothing = {
        "name": "lab",
        "model": {},
        "controller": {"kind": kind, "initial": 0.1},
        "entropy": {"measure": "full"},
    }
    try:
        recipe = resolve(nothing, "KIND", named)
    except RecipeError as error:
        refuse(str(error).splitlines())
    values = recipe.controller.model_dump()
    if found := [*faults(values), *(driven(recipe) if run is None else ())]:
        refuse(found)
    if values["measure"] == "clamped" and run is None:
        refuse(
            [
                "controller.measure=clamped: this experiment measures the entropy of the whole "
                "vocabulary"
            ]
        )
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        refuse([f"--learning-rate={learning_rate:g} must be above 0"])
    if learning_rate is not None and run is not None:
        refuse(["--learning-rate has no effect with --run, which fits a model to that run"])
    refuse_unwritable(csv, plot)
    from aent.lab import control as experiment
    from aent.lab.plant import vocabulary

    if run is None:
        if found := list(unreachable(recipe, vocabulary())):
            refuse(found)
        plant = experiment.learning_plant(learning_rate)
    else:
        plant = _fitted(run, values["drives"])
    policies, settings = range(first_seed, first_seed + seeds), ControllerSettings(**values)
    runs = experiment.run(settings, policies, steps, plant, csv)
    if plot is not None:
        from aent.lab.plot import draw_control

        draw_control(settings, experiment.goal(settings), runs, plot)


def _fitted(source: str, drives: str) -> Plant:
    from aent.lab import fitted
    from aent.lab.control import fitted_plant
    from aent.recipe.load import RecipeError
    from aent.tracking import recorded

    if Path(source).is_file():
        refuse([f"--run: {source} is a file; a run's folder or MLflow id has the coefficients"])
    try:
        found = recorded.read(source)
        if found.controller.drives != drives:
            refuse([f"controller.drives={drives}: {source} drove {found.controller.drives}"])
        return fitted_plant(source, fitted.fit_recorded(found))
    except (recorded.SourceError, RecipeError) as error:
        refuse(str(error).splitlines())


@lab.command()
def bandit(
    arms: Annotated[
        str,
        typer.Option(
            help="Separated by commas: none, full, a dropped fraction (0.33), top_k=K; @X sets a "
            "constant coefficient. The others are compared with the first."
        ),
    ] = "full,0.33,top_k=100",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each arm.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="First seed; then one more each.")] = 0,
    steps: Annotated[int, typer.Option(min=2, help="Updates of each run.")] = 150,
    target: Annotated[
        float, typer.Option(help="Entropy to hold, over the whole vocabulary, nats.")
    ] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-4,
    csv: Annotated[
        Path | None,
        typer.Option(help="File that keeps every step; runs that it has are not repeated."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result (PNG).")] = None,
) -> None:
    """Compare on which tokens the bonus is paid, at the same entropy.

    A bandit: the answer to a sum is one of 49,152 tokens; about 45 seconds for each run.

    Example: aent lab bandit --arms full,0.33 --seeds 2
    """
    from rich.console import Console
    from rich.progress import track

    from aent.lab import bandit_report as report
    from aent.lab.bandit import Arm, vocabulary

    tokens = vocabulary()
    faults = []
    if not 0 < learning_rate < math.inf:
        faults.append(f"--learning-rate={learning_rate:g} must be above 0")
    if not 0 < target < math.log(tokens):
        most = f"{math.log(tokens):.3g} nats, ln({tokens})"
        faults.append(f"--target={target:g} must be above 0 and below {most}")
    try:
        chosen = [Arm.parse(text) for text in dict.fromkeys(arms.split(","))]
    except ValueError as error:
        refuse([f"--arms: {error}", *faults])
    for arm in chosen:
        if arm.top_k is not None and arm.top_k > tokens:
            faults.append(
                f"--arms: {arm.name} keeps more than the {tokens} tokens of the vocabulary"
            )
    if faults:
        refuse(faults)
    refuse_unwritable(plot, csv)
    settings = report.Settings(steps, target, learning_rate)
    range_of_seeds, console = range(first_seed, first_seed + seeds), Console(stderr=True)
    try:
        known = report.read(csv) if csv is not None else {}
    except (ValueError, OSError) as error:
        refuse([f"--csv: {error}"])
    runs = report.run(
        chosen,
        range_of_seeds,
        settings,
        known,
        csv,
        lambda steps, words: track(steps, description=words, console=console),
    )
    print(f"{steps} steps, learning rate {learning_rate:g}, entropy held at {target:g} nats\n")
    print(report.table(chosen, range_of_seeds, runs))
    if len(chosen) > 1:
        print(f"\n{report.contrasts(chosen, range_of_seeds, runs)}")
        print(f"\n{report.secondary(chosen, range_of_seeds, runs)}")
    if plot is not None:
        from aent.lab.plot import draw_bandit

        draw_bandit(runs, plot)


@lab.command()
def clamp(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder, a run folder, or a bundled model "
            "(smollm2-135m-instruct, tiny-qwen2).",
            metavar="MODEL|RUN",
        ),
    ],
    plot: Annotated[Path | None, typer.Option(help="Also draw the result (PNG).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the answers that the policy writes.")] = 0,
) -> None:
    """Show at which entropies a policy's clamped and full entropy differ, and their gradients.

    Example: aent lab clamp smollm2-135m-instruct --plot clamp.png
    """
    from aent.lab import clamp_report
    from aent.recipe.load import RecipeError

    refuse_unwritable(plot)
    try:
        bins = clamp_report.run(model, seed)
    except (FileNotFoundError, ValueError, RecipeError) as error:
        refuse(str(error).splitlines())
    if plot is not None:
        from aent.lab.plot import draw_clamp

        draw_clamp(bins, plot)
