"""The command ``aent``: one command per thing a person does; each imports what it needs, late."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from aent.cluster.render import Script
    from aent.recipe.schema import Recipe
    from aent.tracking.recorded import Recorded

app = typer.Typer(
    help="RL post-training of language models whose entropy is under control.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RecipeArgument = Annotated[str, typer.Argument(help="A recipe (YAML).", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides: trainer.optimizer.lr=1e-5 ...", metavar="[key=value]..."),
]


def _refuse(faults: list[str]) -> NoReturn:
    for fault in faults:
        print(f"aent: {fault}", file=sys.stderr)
    raise typer.Exit(2)


def _load(
    path: str, overrides: list[str] | None, check: bool = True, machine: bool = True
) -> Recipe:
    """The recipe, its run folder named, or one sentence per fault and exit code 2.

    ``machine=False``: it is to run on another machine than this one.
    """
    import time

    from aent.recipe.load import RecipeError, load
    from aent.runtime.environment import data_path

    try:
        recipe = load(data_path(path), overrides or [])
    except RecipeError as error:
        _refuse(str(error).splitlines())
    if recipe.run_dir is None:  # a folder of its own for each run, so that one can be repeated
        stamp = time.strftime("%Y%m%d-%H%M%S")
        recipe = recipe.model_copy(update={"run_dir": f"runs/{recipe.name}-{stamp}"})
    if check:
        from aent.recipe.check import check as check_recipe

        faults = check_recipe(recipe, machine=machine)
        if faults:
            _refuse(faults)
    return recipe


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the resolved recipe, layout and memory; start nothing.")
    ] = False,
) -> None:
    """Train a policy as the recipe says, on this machine."""
    loaded = _load(recipe, overrides)
    if dry_run:
        from aent.recipe.estimate import describe, estimate
        from aent.recipe.load import dump

        print(dump(loaded))
        print(describe(loaded))
        print(estimate(loaded))
        return
    from aent.launch import launch

    raise typer.Exit(launch(loaded))


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder or a run folder.")],
    recipe: Annotated[
        str | None, typer.Option(help="Whose held-out tasks; default: the run's own.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Score a policy on a recipe's held-out tasks, through a vLLM engine started for it."""
    from aent.evaluation.command import run

    source = recipe or str(Path(model) / "recipe.yaml")
    if recipe is None and not Path(source).is_file():
        _refuse([f"{model} is no run folder (no recipe.yaml): name the tasks with --recipe FILE"])
    raise typer.Exit(run(Path(model), _load(source, overrides, check=False)))


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="Also: can this recipe run here?", metavar="[RECIPE]")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what this machine has, and which part will be used for each role."""
    from aent import doctor as module

    raise typer.Exit(module.run(_load(recipe, overrides, check=False) if recipe else None))


SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A run folder, an MLflow run id, or a CSV (step,entropy).", metavar="SOURCE"
    ),
]


def _recorded(source: str, overrides: list[str] | None) -> Recorded:
    from aent.recipe.load import RecipeError
    from aent.tracking.recorded import SourceError, read

    try:
        return read(source, overrides or [])
    except (RecipeError, SourceError) as error:
        _refuse(str(error).splitlines())


@app.command()
def replay(
    source: SourceArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Another controller: controller.high=.9 ...", metavar="[key=value]..."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (PNG).")] = None,
) -> None:
    """Print the coefficients (CSV) that a controller makes of recorded entropy."""
    from aent.replay import run

    run(_recorded(source, overrides), bool(overrides), plot)


@app.command(name="mlflow-sync")
def mlflow_sync(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR")],
) -> None:
    """Give MLflow all that a run recorded while MLflow was away. May be repeated."""
    from aent.recipe.load import RecipeError
    from aent.tracking.sender import sync

    try:
        print(sync(run_dir))
    except (RecipeError, FileNotFoundError) as error:
        _refuse(str(error).splitlines())
    except Exception as error:  # whatever MLflow and its store raise
        print(f"aent: MLflow did not take it: {type(error).__name__}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


slurm = typer.Typer(help="A recipe as a Slurm job: see its cluster section.", no_args_is_help=True)
app.add_typer(slurm, name="slurm")


def _render(recipe: str, overrides: list[str] | None) -> Script:
    from aent.cluster.render import render

    try:
        return render(_load(recipe, overrides, machine=False), recipe, overrides or [])
    except ValueError as error:
        _refuse([f"cluster: {error}"])


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
    import shlex

    from aent.cluster.render import SlurmError, submit

    script = _render(recipe, overrides)
    if dry_run:
        print(f"{script.text}\n# {shlex.join(script.command)}")
        return
    try:
        print(f"job {submit(script)}: {script.path}")
    except SlurmError as error:
        print(f"aent: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@slurm.command(name="status")
def slurm_status(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Show the recipe's jobs, how far each has come and where its run is."""
    from aent.cluster.render import SlurmError, status

    try:
        print(status(_load(recipe, overrides, check=False)))
    except SlurmError as error:
        print(f"aent: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def main() -> None:
    """Entry point of the command ``aent``."""
    app()


if __name__ == "__main__":
    main()
