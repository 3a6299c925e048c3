"""The command ``aent``: one command for each thing a person does; imports are late."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aent.cli.compare import compare, report
from aent.cli.lab import lab
from aent.cli.loading import Overrides, RecipeArgument, load_recipe
from aent.cli.metrics import metrics
from aent.cli.recipe import recipe as describe
from aent.cli.recorded import mlflow_sync, replay, suggest, timeline
from aent.cli.refusals import refuse, warn
from aent.cli.slurm import slurm, status

if TYPE_CHECKING:
    from aent.recipe.schema import Recipe

app = typer.Typer(
    help="RL post-training of language models with controlled entropy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
CONFLICTS_SHOWN = 20  # questions of a public file that have two answers


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in run_dir.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(help="Print the resolved recipe, layout, memory and disk; start nothing."),
    ] = False,
) -> None:
    """Train a policy on this machine, as the recipe says.

    Example: aent train recipes/cpu/tiny.yaml steps=4
    """
    arguments = [*(overrides or []), *(["resume=required"] if resume else [])]
    loaded = load_recipe(recipe, arguments, check=not dry_run)
    if dry_run:
        return _dry_run(loaded)
    from aent.checks.engines import taken_ports
    from aent.launch.launcher import launch

    if faults := list(taken_ports(loaded)):
        refuse(faults)
    raise typer.Exit(launch(loaded))


def _dry_run(recipe: Recipe) -> None:
    """Print what would run, and what this machine lacks or cannot check.

    Exit code 2 if the recipe can run nowhere, or if its model folder is here and broken.
    """
    from aent.checks import model as check_model
    from aent.checks.engines import taken_ports
    from aent.checks.recipe import check, doubts
    from aent.estimate import card
    from aent.estimate.disk import describe_disk
    from aent.estimate.memory import GIB, estimate
    from aent.estimate.processes import describe
    from aent.models.facts import are_known, is_here, is_published
    from aent.recipe.load import dump

    faults = check(recipe, machine=False)
    if faults:
        refuse(faults)
    print(dump(recipe))
    if are_known(recipe.model):
        print(describe(recipe))
        memory = estimate(recipe)
        print(memory)
        if recipe.cluster.gpus_per_node:
            print(card.describe(recipe, memory, int(recipe.cluster.gpu_memory_gib * GIB)))
        print(describe_disk(recipe))
    if is_published(recipe.model):
        print(f"not checked: {recipe.model.path} is not here; sizes are those of its publication")
    elif not are_known(recipe.model):
        print(
            f"not checked: {recipe.model.path} is not here, so neither is the layout, nor are "
            "lengths and memory"
        )
    warn(doubts(recipe, machine=False))
    for fault in [*check(recipe), *taken_ports(recipe)]:
        print(f"would not start here: {fault}")
    if is_here(recipe.model) and check_model.folder_faults(recipe):
        raise typer.Exit(2)


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face folder, a run folder, or an engine's URL.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Fields of the suite (samples=8 top_k=20 max_tokens=7168 ...) or of the recipe "
            "(rollout.engine.tensor_parallel=2 ...).",
            metavar="[key=value]...",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Suite to score on; default: the recipe's held-out questions."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe with questions, engine and graders; default: the run's own."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder with the suites' files.")] = Path("data"),
    out: Annotated[Path | None, typer.Option(help="Folder for the answers.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of the model that a URL serves.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that a URL asks for.")
    ] = None,
) -> None:
    """Score a policy with vLLM on a suite: pass@k with intervals; every answer is kept.

    An evaluation that was stopped continues if it is started again.

    Example: aent eval runs/mine --suite math-500
    """
    from aent.evaluation import command, suites

    own = Path(model) / "recipe.yaml"
    source = recipe or (str(own) if own.is_file() else None)
    of_suite = [o for o in overrides or [] if o.partition("=")[0] in suites.CHANGEABLE]
    of_recipe = [o for o in overrides or [] if o not in of_suite]
    if source is not None:
        loaded = load_recipe(source, of_recipe, check=False, recorded=recipe is None)
    elif suite is not None:
        loaded = _plain_recipe(of_recipe)
    else:
        refuse(
            [f"{model} is not a run folder (no recipe.yaml): give --suite NAME or --recipe FILE"]
        )
    try:
        asked = suites.find(suite, of_suite) if suite else suites.of_recipe(loaded, of_suite)
    except ValueError as error:
        refuse([str(error)])
    evaluation = command.Evaluation(model, asked, loaded, out, data, tokenizer, token_file)
    raise typer.Exit(command.run(evaluation))


def _plain_recipe(overrides: list[str]) -> Recipe:
    """The defaults of every field, for a model without a recipe."""
    from aent.recipe.load import RecipeError, resolve

    data = {"name": "eval", "model": {}, "controller": {"initial": 0.0}}
    try:
        return resolve(data, "aent eval", overrides)
    except RecipeError as error:
        refuse(str(error).splitlines())


@app.command()
def data(
    name: Annotated[
        str, typer.Argument(help="A public data set, as math-500; or check.", metavar="NAME|check")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files (.jsonl, .parquet); for check also folders of data sets.", metavar="FILE..."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: data/NAME.jsonl.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="For check: the recipe that will train on the file.")
    ] = None,
) -> None:
    """Convert a public data set's files into a file of questions, or check your own file.

    The file has the columns question and answer. check reports what a file contains, and what a run
    would leave out.

    Example: aent data math-500 test.jsonl
    """
    from aent.tasks import sources

    if name == "check":
        return _check_data(files, recipe)
    if name not in sources.SOURCES:
        refuse([f"{name}: not one of {', '.join(sorted(sources.SOURCES))}"])
    target = out or Path("data") / f"{name}.jsonl"
    try:
        done = sources.prepare(name, files, target)
    except (OSError, ValueError) as error:
        refuse([str(error)])
    print(
        f"{target}: {done.written} questions of {done.read} rows "
        f"({done.left_out} left out, {done.repeated} repeated, {len(done.conflicts)} with two "
        "answers)"
    )
    for conflict in done.conflicts[:CONFLICTS_SHOWN]:
        print(f"aent: {conflict}: left out", file=sys.stderr)
    expected = sources.SOURCES[name].count
    if done.written != expected:
        print(
            f"aent: {name} should have {expected} questions: are these all the files of "
            f"{sources.SOURCES[name].where}?",
            file=sys.stderr,
        )


def _check_data(files: list[Path], recipe: str | None) -> None:
    from aent.checks import data

    loaded = None if recipe is None else load_recipe(recipe, None, check=False)
    try:
        for path in files:
            for line in data.of_file(path, loaded, Path("data")):
                print(line, flush=True)
    except (OSError, ValueError) as error:
        refuse([str(error)])


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(help="Also report if this recipe can run here.", metavar="[RECIPE]"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Report hardware, libraries, and the backend that each component will use.

    Example: aent doctor recipes/cpu/quickstart.yaml
    """
    from aent.cli import doctor as module

    raise typer.Exit(module.run(load_recipe(recipe, overrides, check=False) if recipe else None))


app.command(name="recipe")(describe)
app.command()(metrics)
app.command()(replay)
app.command()(suggest)
app.command()(timeline)
app.command(name="mlflow-sync")(mlflow_sync)
app.command()(compare)
app.command()(report)

app.command()(status)
app.add_typer(slurm, name="slurm")
app.add_typer(lab, name="lab")


def main() -> None:
    """Entry point of the command ``aent``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may lack characters of recipes and answers
            stream.reconfigure(errors="backslashreplace")
    app()
