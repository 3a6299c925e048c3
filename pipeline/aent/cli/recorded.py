"""Commands that read a recorded run: replay, suggest, timeline, mlflow-sync."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aent.cli.refusals import refuse, refuse_unwritable

if TYPE_CHECKING:
    from aent.tracking.recorded import Recorded

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
        refuse(str(error).splitlines())


def replay(
    source: SourceArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Changes of the controller: controller.high=0.9 ...", metavar="[key=value]..."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curves (PNG).")] = None,
) -> None:
    """Print the coefficients (CSV) that a controller computes from recorded entropy.

    Example: aent replay runs/mine controller.step_size=0.4
    """
    from aent.analysis.replay import run

    refuse_unwritable(plot)
    run(_recorded(source, overrides), bool(overrides), plot)


def suggest(
    source: SourceArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="For a CSV: the constant coefficient, as controller.initial=0.",
            metavar="[key=value]...",
        ),
    ] = None,
    most: Annotated[
        float | None, typer.Option("--max", help="Largest coefficient allowed.")
    ] = None,
) -> None:
    """Propose a controller from a run with a constant coefficient, with reasons.

    Example: aent suggest runs/constant
    """
    from aent.analysis.suggest import suggest as propose
    from aent.tracking.recorded import SourceError

    try:
        print(propose(_recorded(source, overrides), most))
    except SourceError as error:
        refuse([str(error)])


def timeline(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: RUN_DIR/timeline.json.")
    ] = None,
) -> None:
    """Write a trace of what every rank and engine did, for https://ui.perfetto.dev.

    Example: aent timeline runs/mine
    """
    import json

    from aent.analysis.timeline import trace

    out = out or run_dir / "timeline.json"
    try:
        found = trace(run_dir)
    except FileNotFoundError as error:
        refuse([str(error)])
    refuse_unwritable(out)
    out.write_text(json.dumps(found))
    print(f"{out}: {len(found['traceEvents'])} events; open it in https://ui.perfetto.dev")


def mlflow_sync(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR")],
) -> None:
    """Upload what was recorded while MLflow was unreachable; safe to repeat.

    Example: aent mlflow-sync runs/mine
    """
    from aent.recipe.load import RecipeError
    from aent.recipe.redact import redacted
    from aent.tracking.sender import sync

    try:
        print(sync(run_dir))
    except (RecipeError, FileNotFoundError) as error:
        refuse(str(error).splitlines())
    except Exception as error:  # anything that MLflow and its store raise
        why = redacted(f"{type(error).__name__}: {error}")
        print(f"aent: the upload to MLflow failed: {why}", file=sys.stderr)
        raise typer.Exit(1) from None
