"""``aent slurm ...`` and ``aent status``: run a recipe as a Slurm job, and report on a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from aent.cli.loading import Overrides, RecipeArgument, load_recipe
from aent.cli.refusals import refuse, warn
from aent.cli.submitting import hand_over, hand_over_several, without_job

if TYPE_CHECKING:
    from aent.slurm.render import Script, ScriptedRun

T = TypeVar("T")
WATCH_S = 5.0  # interval of aent status --watch
slurm = typer.Typer(
    help="Run a recipe as a Slurm job (section cluster of the recipe).", no_args_is_help=True
)


def _render(recipe: str, overrides: list[str] | None) -> tuple[Script, ScriptedRun]:
    from aent.slurm.render import render

    run = (recipe, overrides or [], load_recipe(recipe, overrides, machine=False))
    try:
        return render(run[2], run[0], run[1]), run
    except ValueError as error:
        refuse([f"cluster: {error}"])


@slurm.command(name="render")
def slurm_render(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print the batch script of the recipe's job.

    Example: aent slurm render recipes/cpu/tiny.yaml cluster.partition=gpu
    """
    print(_render(recipe, overrides)[0].text, end="")


@slurm.command(name="submit")
def slurm_submit(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the script and the command; submit and write nothing.")
    ] = False,
) -> None:
    """Submit the recipe's job; its script and log are kept beside the run's folder.

    Example: aent slurm submit recipes/cpu/tiny.yaml cluster.nodes=2
    """
    script, run = _render(recipe, overrides)
    if not dry_run and not without_job([run], sys.stderr):
        raise typer.Exit(1)
    hand_over([script], dry_run)


@slurm.command(name="sweep")
def slurm_sweep(
    recipe: RecipeArgument,
    variants: Annotated[
        Path, typer.Argument(help="A file with one line of overrides for each run.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the runs; default: runs/ and the name of VARIANTS."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the scripts and the commands; submit and write nothing.")
    ] = False,
) -> None:
    """Submit one run for each line of VARIANTS that is neither finished, waiting nor running.

    The runs are one job array, or single jobs if engines have nodes of their own or the runs ask
    for different resources.

    Example: aent slurm sweep recipes/cpu/tiny.yaml variants.txt --dry-run
    """
    import shlex

    from aent.checks.recipe import doubts
    from aent.recipe.load import RecipeError
    from aent.slurm.sweep import planned

    folder = out or Path("runs") / variants.stem
    try:
        runs = planned(recipe, variants, overrides or [], folder)
    except RecipeError as error:
        refuse(str(error).splitlines())
    warn(doubt for *_, each in runs for doubt in doubts(each, machine=False))
    if not runs:
        print("every run is finished")
        return
    said = shlex.join(["aent", "slurm", "sweep", recipe, str(variants), *(overrides or [])])
    hand_over_several(runs, folder, said, dry_run)


TargetArgument = Annotated[
    str, typer.Argument(help="A run folder, a Slurm job id, or a recipe.", metavar="TARGET")
]


def status(
    target: TargetArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every five seconds.")] = False,
) -> None:
    """Report on a run: job, steps, ranks, engines, restarts, last error, logs.

    Example: aent status runs/mine
    """
    import time

    from aent.slurm.status import report
    from aent.slurm.submission import SlurmError

    lines, told = _asked(report, target), ""
    while watch:
        print("\033[H\033[2J" + "\n".join([*lines, told]), flush=True)
        time.sleep(WATCH_S)
        try:
            lines, told = report(target), ""
        except (
            SlurmError,
            OSError,
            ValueError,
        ) as error:  # Slurm or the file system is unreachable
            told = f"aent: this report is out of date: {error}"
    print("\n".join(lines))


@slurm.command(name="cancel")
def slurm_cancel(target: TargetArgument) -> None:
    """Cancel the job (scancel); the run's status in MLflow becomes KILLED.

    Example: aent slurm cancel runs/mine
    """
    from aent.slurm.status import cancel

    print(f"job {_asked(cancel, target)}: cancelled")


@slurm.command(name="logs")
def slurm_logs(target: TargetArgument) -> None:
    """Print the job's log as it grows; stop with Ctrl-C.

    Example: aent slurm logs runs/mine
    """
    import os

    from aent.slurm.status import log_of

    # a job that waits has no log yet
    follow = ["--lines=+1", "--follow=name", "--retry"]
    os.execvp("tail", ["tail", *follow, _asked(log_of, target)])


def _asked(ask: Callable[[str], T], target: str) -> T:
    """The answer, or one sentence and exit code 2 (bad input) or 1 (Slurm refused)."""
    from aent.recipe.load import RecipeError
    from aent.slurm.submission import SlurmError

    try:
        return ask(target)
    except (RecipeError, ValueError) as error:
        refuse(str(error).splitlines())
    except SlurmError as error:
        print(f"aent: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
