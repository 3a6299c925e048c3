"""``aent lab ...``: the laboratory on the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aent.cli.refusals import refuse, refuse_unwritable

if TYPE_CHECKING:
    from aent.lab.control import Plant

lab = typer.Typer(
    help="The laboratory: what can be known about entropy control on a CPU, in minutes.",
    no_args_is_help=True,
)


@lab.command()
def mdp(
    optimal: Annotated[
        list[int] | None,
        typer.Option(help="Numbers of optimal answers: --optimal 15 10 5 1 (the default)."),
    ] = None,
    more_optimal: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Exact gradient steps.")] = 4000,
    seeds: Annotated[int, typer.Option(min=1, help="Initial policies of each setting.")] = 5,
    csv: Annotated[
        Path | None, typer.Option(help="Also write arm,optimal,seed,step,reward.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curves (PNG).")] = None,
) -> None:
    """The paper's small experiment: five arms on a token MDP with 100,000 actions."""
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
    kind: Annotated[str, typer.Argument(help="A kind of controller.", metavar="KIND")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            help="Its fields: target=.5 ramp_steps=30 ... (initial is .1 unless given).",
            metavar="[key=value]...",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Policies.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Of the first one; then one more.")] = 0,
    steps: Annotated[int, typer.Option(min=20, help="Updates of each policy.")] = 200,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: that of the compare recipes.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="A run's folder or MLflow id: a policy that answers as its entropy did.",
            metavar="SOURCE",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Also write kind,seed,step,entropy,coefficient,reward."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (PNG).")] = None,
) -> None:
    """How well a controller holds the entropy of a policy that learns: the compare recipes'
    policy in one process, some ten seconds a seed; or one fitted to a run of your own, at once."""
    from aent.checks.controls import driven
    from aent.entropy.controllers import ControllerSettings, faults
    from aent.recipe.load import RecipeError, resolve

    named = [f"controller.{field}" for field in fields or []]
    nothing = {"name": "lab", "model": {}, "controller": {"kind": kind, "initial": 0.1}}
    try:
        recipe = resolve(nothing, "KIND", named)
    except RecipeError as error:
        refuse(str(error).splitlines())
    values = recipe.controller.model_dump()
    if found := [*faults(values), *(driven(recipe) if run is None else ())]:
        refuse(found)
    if values["measure"] == "clamped" and run is None:
        refuse(["controller.measure=clamped: the entropy here is that of the whole vocabulary"])
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        refuse([f"--learning-rate={learning_rate:g} must be above 0"])
    if learning_rate is not None and run is not None:
        refuse(["--learning-rate has no meaning with --run: that is fitted as it is"])
    refuse_unwritable(csv, plot)
    from aent.lab import control as experiment

    if run is None:
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
            help="Comma between them: none, full, a dropped fraction (.33), top_k=K; @X: a "
            "constant coefficient. The first one is what the others are compared with."
        ),
    ] = "full,.33,top_k=100",
    seeds: Annotated[int, typer.Option(min=1, help="Of every arm.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Then one more.")] = 0,
    steps: Annotated[int, typer.Option(min=2, help="Updates of a run.")] = 150,
    target: Annotated[float, typer.Option(help="Full entropy to hold, nats.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 1e-4,
    csv: Annotated[
        Path | None, typer.Option(help="Keep every step here; runs that it has are not repeated.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (PNG).")] = None,
) -> None:
    """What the bonus is paid on, at the same entropy: 49,152 tokens, one question and one token an
    answer, some 45 seconds a run."""
    from rich.console import Console
    from rich.progress import track

    from aent.lab import bandit_report as report
    from aent.lab.bandit import Arm

    faults = [
        f"--{name}={value:g} must be above 0"
        for name, value in (("target", target), ("learning-rate", learning_rate))
        if not 0 < value < math.inf
    ]
    try:
        chosen = [Arm.parse(text) for text in dict.fromkeys(arms.split(","))]
    except ValueError as error:
        refuse([f"--arms: {error}", *faults])
    if faults:
        refuse(faults)
    refuse_unwritable(plot, csv if csv is not None and not csv.exists() else None)
    settings = report.Settings(steps, target, learning_rate)
    range_of_seeds, console = range(first_seed, first_seed + seeds), Console(stderr=True)
    try:
        runs = report.run(
            chosen,
            range_of_seeds,
            settings,
            csv,
            lambda steps, words: track(steps, description=words, console=console),
        )
    except (ValueError, OSError) as error:
        refuse([f"--csv: {error}"])
    print(f"{steps} steps, learning rate {learning_rate:g}, entropy held at {target:g} nats\n")
    print(report.table(chosen, range_of_seeds, runs))
    if len(chosen) > 1:
        print(f"\n{report.contrasts(chosen, range_of_seeds, runs)}")
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
    plot: Annotated[Path | None, typer.Option(help="Also draw it (PNG).")] = None,
    seed: Annotated[int, typer.Option(help="Of the answers that the policy writes.")] = 0,
) -> None:
    """At which entropies clamped and full entropy differ, and their gradients, for a policy."""
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
