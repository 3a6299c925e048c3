"""How commands read a recipe: with the same arguments and the same refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aent.cli.refusals import refuse, warn

if TYPE_CHECKING:
    from aent.recipe.schema import Recipe

RecipeArgument = Annotated[str, typer.Argument(help="A recipe (YAML).", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides: trainer.optimizer.lr=1e-5 ...", metavar="[key=value]..."),
]


def load_recipe(
    path: str,
    overrides: list[str] | None,
    check: bool = True,
    machine: bool = True,
    recorded: bool = False,
) -> Recipe:
    """The recipe, its run folder named, or one sentence per fault and exit code 2.

    ``machine=False``: it will run on another machine. ``recorded``: it is the copy in a run's
    folder.
    """
    import time

    from aent.recipe.load import RecipeError, load, load_recorded
    from aent.runtime.environment import data_path

    try:
        read = load_recorded if recorded else load
        recipe = read(data_path(path), overrides or [])
    except RecipeError as error:
        refuse(str(error).splitlines())
    if check and recipe.run_dir is None and recipe.resume != "never":
        refuse([f"resume={recipe.resume} needs the run's folder: set run_dir"])
    if recipe.run_dir is None:  # each run gets its own folder, so that a command can be repeated
        stamp = time.strftime("%Y%m%d-%H%M%S")
        recipe = recipe.model_copy(update={"run_dir": f"runs/{recipe.name}-{stamp}"})
    if check:
        from aent.checks.recipe import check as check_recipe
        from aent.checks.recipe import doubts

        faults = check_recipe(recipe, machine=machine)
        if faults:
            refuse(faults)
        warn(doubts(recipe, machine=machine))
    return recipe
