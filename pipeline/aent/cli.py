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
    if check and recipe.run_dir is None and recipe.resume != "never":
        _refuse([f"resume={recipe.resume} needs the folder of the run: name it by run_dir"])
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in run_dir.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print the resolved recipe, layout and memory; start nothing.")
    ] = False,
) -> None:
    """Train a policy as the recipe says, on this machine."""
    arguments = [*(overrides or []), *(["resume=required"] if resume else [])]
    loaded = _load(recipe, arguments, check=not dry_run)
    if dry_run:
        return _dry_run(loaded)
    from aent.launch import launch

    raise typer.Exit(launch(loaded))


def _dry_run(recipe: Recipe) -> None:
    """What would run, and what of it this machine cannot tell or does not have."""
    from aent.recipe.check import check
    from aent.recipe.estimate import describe, estimate
    from aent.recipe.load import dump
    from aent.recipe.model_facts import are_known, is_published

    faults = check(recipe, machine=False)
    if faults:
        _refuse(faults)
    print(dump(recipe))
    if are_known(recipe.model):
        print(describe(recipe))
        print(estimate(recipe))
    if is_published(recipe.model):
        print(f"not checked: {recipe.model.path} is not here; sizes are those of its publication")
    elif not are_known(recipe.model):
        print(
            f"not checked: {recipe.model.path} is not here, so neither is the layout, nor are "
            "lengths and memory"
        )
    for fault in check(recipe):
        print(f"would not start here: {fault}")


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face folder, a run folder, or an engine's URL.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Of the suite (samples=8 top_k=20 max_tokens=7168 ...) or of the recipe "
            "(rollout.engine.tensor_parallel=2 ...).",
            metavar="[key=value]...",
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Default: a recipe's held-out questions.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Held-out questions, engine and judges; default: the run's own."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of the suites' files.")] = Path("data"),
    out: Annotated[Path | None, typer.Option(help="Folder of the answers.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of the model behind a URL.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the token that a URL asks for.")
    ] = None,
) -> None:
    """Score a policy on a suite, through vLLM: pass@k with intervals, every answer kept.

    Stopped and started again, it goes on where it stopped.
    """
    from aent.evaluation import command, suites

    own = Path(model) / "recipe.yaml"
    source = recipe or (str(own) if own.is_file() else None)
    of_suite = [o for o in overrides or [] if o.partition("=")[0] in suites.CHANGEABLE]
    of_recipe = [o for o in overrides or [] if o not in of_suite]
    if source is not None:
        loaded = _load(source, of_recipe, check=False)
    elif suite is not None:
        loaded = _plain_recipe(of_recipe)
    else:
        _refuse([f"{model} is no run folder (no recipe.yaml): give --suite NAME or --recipe FILE"])
    try:
        asked = suites.find(suite, of_suite) if suite else suites.of_recipe(loaded, of_suite)
    except ValueError as error:
        _refuse([str(error)])
    evaluation = command.Evaluation(model, asked, loaded, out, data, tokenizer, token_file)
    raise typer.Exit(command.run(evaluation))


def _plain_recipe(overrides: list[str]) -> Recipe:
    """Every default, for a model that no recipe belongs to."""
    from aent.recipe.load import RecipeError, resolve

    data = {"name": "eval", "model": {}, "controller": {"initial": 0.0}}
    try:
        return resolve(data, "aent eval", overrides)
    except RecipeError as error:
        _refuse(str(error).splitlines())


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="Which questions, as math-500.", metavar="NAME")],
    files: Annotated[
        list[Path], typer.Argument(help="The public files (.jsonl, .parquet).", metavar="FILE...")
    ],
    out: Annotated[Path | None, typer.Option(help="Default: data/NAME.jsonl.")] = None,
) -> None:
    """Make a file of questions (columns question, answer) of public files."""
    from aent.tasks import sources

    if name not in sources.SOURCES:
        _refuse([f"{name}: not one of {', '.join(sorted(sources.SOURCES))}"])
    target = out or Path("data") / f"{name}.jsonl"
    try:
        done = sources.prepare(name, files, target)
    except (OSError, ValueError) as error:
        _refuse([str(error)])
    print(
        f"{target}: {done.written} questions of {done.read} rows "
        f"({done.left_out} left out, {done.repeated} repeated)"
    )
    expected = sources.SOURCES[name].count
    if done.written != expected:
        print(
            f"aent: {name} should have {expected} questions: are these all the files of "
            f"{sources.SOURCES[name].where}?",
            file=sys.stderr,
        )


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


@app.command()
def suggest(
    source: SourceArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="For a CSV: controller.initial=...", metavar="[key=value]..."),
    ] = None,
    most: Annotated[float | None, typer.Option("--max", help="Largest coefficient.")] = None,
) -> None:
    """Propose a band and a step size from a run with a constant coefficient, and say why."""
    from aent.suggest import suggest as propose
    from aent.tracking.recorded import SourceError

    try:
        print(propose(_recorded(source, overrides), most))
    except SourceError as error:
        _refuse([str(error)])


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


@app.command()
def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            help="A recipe per arm; overrides of every arm: steps=20 ...",
            metavar="RECIPE... [key=value]...",
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Of every arm: 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the runs, and of the report.")] = Path(
        "runs/comparison"
    ),
    slurm: Annotated[
        bool, typer.Option("--slurm", help="As a Slurm job array: see the cluster section.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Say what would run (of an array: its script); start nothing.")
    ] = False,
) -> None:
    """Run every arm with every seed; stopped and started again, go on with what is not finished."""
    import shlex

    from aent.cluster.render import SlurmError, render_array, submit
    from aent.compare.plan import plan
    from aent.recipe.check import check
    from aent.recipe.load import RecipeError

    overrides = [a for a in arms if "=" in a and not Path(a).exists()]
    sources = [a for a in arms if a not in overrides]
    try:
        runs = plan(sources, overrides, seeds, out)
    except RecipeError as error:
        _refuse(str(error).splitlines())
    faults = [f"{r.source}: {f}" for r in runs for f in check(r.recipe, machine=not slurm)]
    if faults:
        _refuse(list(dict.fromkeys(faults)))
    if not slurm:
        from aent.compare import local

        if dry_run:
            print("\n".join(f"{r}: {'finished' if r.finished else r.run_dir}" for r in runs))
            return
        raise typer.Exit(local.run_all(runs, out))
    left = [(r.source, r.overrides, r.recipe) for r in runs if not r.finished]
    if not left:
        print("every run is finished")
        return
    try:
        script = render_array(left, out, f"aent compare {shlex.join([*arms, '--slurm'])}")
        if dry_run:
            print(f"{script.text}\n# {shlex.join(script.command)}")
        else:
            print(f"job {submit(script)}: {script.path}")
    except ValueError as error:
        _refuse([f"cluster: {error}"])
    except SlurmError as error:
        print(f"aent: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def report(
    source: Annotated[
        str, typer.Argument(help="A comparison's folder, or the MLflow id of the run above it.")
    ] = "runs/comparison",
    baseline: Annotated[
        str | None,
        typer.Option(help="What the others are held against; default: the arm without a bonus."),
    ] = None,
    reward: Annotated[
        float | None,
        typer.Option(help="Whose cost is told; default: where the baseline's training ends."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: the comparison's folder.")] = None,
) -> None:
    """Write what a comparison found, from MLflow: one page (HTML), and Markdown."""
    from aent.compare import collect, page
    from aent.compare.report import make
    from aent.recipe.load import RecipeError
    from aent.tracking.recorded import SourceError

    try:
        made = make(collect.read(source), baseline, reward)
    except (RecipeError, SourceError, ValueError) as error:
        _refuse(str(error).splitlines())
    folder = out or (Path(source) if Path(source).is_dir() else Path())
    for path in page.write(made, folder):
        print(path)


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


lab = typer.Typer(
    help="The laboratory: what can be known about entropy control on a CPU, in minutes.",
    no_args_is_help=True,
)
app.add_typer(lab, name="lab")


def _check_folders(*files: Path | None) -> None:
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            _refuse([f"{file}: there is no folder {file.parent}"])


@lab.command(name="mdp")
def lab_mdp(
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
    _check_folders(csv, plot)
    try:
        tasks = [experiment.Task(number) for number in dict.fromkeys(settings)]
    except ValueError as error:
        _refuse([f"--optimal: {error}"])
    experiment.run(tasks, seeds, steps, csv, plot)


@lab.command(name="clamp")
def lab_clamp(
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

    _check_folders(plot)
    try:
        clamp_report.run(model, plot, seed)
    except (FileNotFoundError, ValueError, RecipeError) as error:
        _refuse(str(error).splitlines())


def main() -> None:
    """Entry point of the command ``aent``."""
    app()


if __name__ == "__main__":
    main()
