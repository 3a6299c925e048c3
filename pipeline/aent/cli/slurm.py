"""``aent slurm ...`` and ``aent status``: a recipe as a Slurm job, and how a run stands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from aent.cli.loading import Overrides, RecipeArgument, load_recipe
from aent.cli.refusals import refuse
from aent.cli.submitting import hand_over

if TYPE_CHECKING:
    from aent.slurm.render import Script

T = TypeVar("T")
WATCH_S = 5.0  # between two looks of aent status --watch
slurm = typer.Typer(help="A recipe as a Slurm job: see its cluster section.", no_args_is_help=True)


def _render(recipe: str, overrides: list[str] | None) -> Script:
    from aent.slurm.render import render

    try:
        return render(load_recipe(recipe, overrides, machine=False), recipe, overrides or [])
    except ValueError as error:
        refuse([f"cluster: {error}"])


@slurm.command(name="render")
def slurm_render(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print the batch script of the recipe's job."""
    print(_render(recipe, overrides).text, end="")


@slurm.command(name="submit")
def slurm_submit(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the script and the command; submit and write nothing.")
    ] = False,
) -> None:
    """Submit the recipe's job; its script and its log are kept beside the run's folder."""
    hand_over([_render(recipe, overrides)], dry_run)


@slurm.command(name="sweep")
def slurm_sweep(
    recipe: RecipeArgument,
    variants: Annotated[Path, typer.Argument(help="A file with a line of overrides for each run.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: runs/ and VARIANTS' name.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the scripts and the commands; submit and write nothing.")
    ] = False,
) -> None:
    """Submit a run for each line of VARIANTS, those that are finished left out: a job array, or a
    job each where they have engines' nodes of their own, or differ in what they ask for."""
    import shlex

    from aent.recipe.load import RecipeError
    from aent.slurm.render import render_several
    from aent.slurm.sweep import planned

    folder = out or Path("runs") / variants.stem
    try:
        runs = planned(recipe, variants, overrides or [], folder)
    except RecipeError as error:
        refuse(str(error).splitlines())
    if not runs:
        print("every run is finished")
        return
    said = shlex.join(["aent", "slurm", "sweep", recipe, str(variants), *(overrides or [])])
    try:
        scripts = render_several(runs, folder, said)
    except ValueError as error:
        refuse([f"cluster: {error}"])
    hand_over(scripts, dry_run)


TargetArgument = Annotated[
    str, typer.Argument(help="A run folder, a Slurm job's number, or a recipe.", metavar="TARGET")
]


def status(
    target: TargetArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Again every five seconds.")] = False,
) -> None:
    """Say how a run stands: job, steps, ranks, engines, restarts, last error, logs."""
    import time

    from aent.slurm.render import SlurmError
    from aent.slurm.status import report

    lines, told = _asked(report, target), ""
    while watch:
        print("\033[H\033[2J" + "\n".join([*lines, told]), flush=True)
        time.sleep(WATCH_S)
        try:
            lines, told = report(target), ""
        except (SlurmError, OSError, ValueError) as error:  # Slurm, or the file system, is away
            told = f"aent: the above is not up to date: {error}"
    print("\n".join(lines))


@slurm.command(name="cancel")
def slurm_cancel(target: TargetArgument) -> None:
    """End the job (scancel); MLflow's run is KILLED."""
    from aent.slurm.status import cancel

    print(f"job {_asked(cancel, target)}: cancelled")


@slurm.command(name="logs")
def slurm_logs(target: TargetArgument) -> None:
    """Print the job's log as it grows; end it with Ctrl-C."""
    import os

    from aent.slurm.status import log_of

    os.execvp("tail", ["tail", "--lines=+1", "--follow=name", _asked(log_of, target)])


def _asked(ask: Callable[[str], T], target: str) -> T:
    """The answer, or a sentence and exit code 2 (bad input) or 1 (Slurm said no)."""
    from aent.recipe.load import RecipeError
    from aent.slurm.render import SlurmError

    try:
        return ask(target)
    except (RecipeError, ValueError) as error:
        refuse(str(error).splitlines())
    except SlurmError as error:
        print(f"aent: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
