"""The commands ``aent compare`` and ``aent report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aent.cli.refusals import make_folder, refuse, warn
from aent.cli.submitting import hand_over_several


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            help="One recipe for each arm; overrides apply to every arm: steps=20 ...",
            metavar="RECIPE... [key=value]...",
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each arm: 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path(
        "runs/comparison"
    ),
    slurm: Annotated[
        bool,
        typer.Option(
            "--slurm", help="Submit Slurm jobs, as an array if possible (section cluster)."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(help="Print what would run (with --slurm: the job scripts); start nothing."),
    ] = False,
) -> None:
    """Train every arm with every seed, and compare them.

    If it was stopped, start it again: it continues with the runs that are not finished. With
    --slurm, it submits those that are neither finished, waiting nor running.

    Example: aent compare recipes/compare/sets-*.yaml --seeds 6
    """
    import shlex

    from aent.checks.engines import taken_ports
    from aent.checks.recipe import check, doubts
    from aent.compare.arms import plan
    from aent.recipe.load import RecipeError
    from aent.runtime.files import folder_problem

    overrides = [a for a in arms if "=" in a and not Path(a).exists()]
    sources = [a for a in arms if a not in overrides]
    if (why := folder_problem(out)) is not None:  # reported once, not for every run in it
        refuse([f"--out: {why}"])
    try:
        runs = plan(sources, overrides, seeds, out)
    except RecipeError as error:
        refuse(str(error).splitlines())
    faults = [f"{r.source}: {f}" for r in runs for f in check(r.recipe, machine=not slurm)]
    if not slurm:
        faults += [f"{r.source}: {f}" for r in runs for f in taken_ports(r.recipe)]
    if faults:
        refuse(list(dict.fromkeys(faults)))
    warn(f"{r.source}: {d}" for r in runs for d in doubts(r.recipe, machine=not slurm))
    if not slurm:
        from aent.compare import local

        if dry_run:
            print("\n".join(f"{r}: {'finished' if r.finished else r.run_dir}" for r in runs))
            return
        make_folder(out)
        raise typer.Exit(local.run_all(runs, out))
    left = [(r.source, r.overrides, r.recipe) for r in runs if not r.finished]
    if not left:
        print("every run is finished")
        return
    hand_over_several(left, out, f"aent compare {shlex.join([*arms, '--slurm'])}", dry_run)


def report(
    source: Annotated[
        str,
        typer.Argument(
            help="A comparison's folder, the id of its parent run in MLflow, or one run's folder."
        ),
    ] = "runs/comparison",
    baseline: Annotated[
        str | None,
        typer.Option(help="Arm to compare the others with; default: the arm without a bonus."),
    ] = None,
    reward: Annotated[
        float | None,
        typer.Option(
            help="Reward whose cost is reported; default: halfway from the baseline's last to the "
            "best arm's."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: the comparison's.")
    ] = None,
) -> None:
    """Write a comparison's report from MLflow: one HTML page, and Markdown.

    For one run's folder: print how long the parts of a step take, and the bottleneck.

    Example: aent report runs/comparison --baseline full
    """
    from aent.compare import collect, page
    from aent.compare.report import make
    from aent.recipe.load import RecipeError
    from aent.tracking.journal import JOURNAL_FILE
    from aent.tracking.recorded import SourceError

    if (Path(source) / JOURNAL_FILE).is_file():
        given = {"--baseline": baseline, "--reward": reward, "--out": out}
        if unfit := [name for name, value in given.items() if value is not None]:
            refuse([f"{', '.join(unfit)}: for a comparison, and {source} is one run's folder"])
        return _one_run(source)
    try:
        made = make(collect.read(source), baseline, reward)
    except (RecipeError, SourceError, ValueError) as error:
        refuse(str(error).splitlines())
    folder = out or (Path(source) if Path(source).is_dir() else Path())
    make_folder(folder)
    for path in page.write(made, folder):
        print(path)


def _one_run(source: str) -> None:
    from aent.analysis import bottleneck
    from aent.recipe.load import RecipeError
    from aent.tracking.recorded import SourceError, read

    try:
        recorded = read(source)
    except (RecipeError, SourceError) as error:
        refuse(str(error).splitlines())
    for line in bottleneck.lines(recorded.recipe, recorded.metrics):
        print(line)
