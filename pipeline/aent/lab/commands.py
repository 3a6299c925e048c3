"""``aent lab ...``: the laboratory on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aent.refusals import refuse, refuse_unwritable

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
    experiment.run(tasks, seeds, steps, csv, plot)


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
        clamp_report.run(model, plot, seed)
    except (FileNotFoundError, ValueError, RecipeError) as error:
        refuse(str(error).splitlines())
