"""How commands submit batch scripts: ``--dry-run`` prints them; else they are written and sent."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import typer

from aent.cli.refusals import make_folder

if TYPE_CHECKING:
    from aent.slurm.render import Script, ScriptedRun


def without_job(runs: Sequence[ScriptedRun]) -> list[ScriptedRun]:
    """The runs that no job of this user waits for or works on; prints one line for each other run.

    Exit code 2 if the folder of scripts and runs cannot be written, 1 if Slurm does not answer.
    """
    from aent.recipe.folder import run_folder
    from aent.slurm.submission import SlurmError, at_work

    folders = [run_folder(recipe) for *_, recipe in runs]
    for place in dict.fromkeys(folder.parent for folder in folders):
        make_folder(place)
    try:
        jobs = at_work(folders)
    except SlurmError as error:
        _fail(error)
    for folder, job in jobs.items():
        print(f"{folder.absolute()}: job {job} is already waiting or running")
    return [run for run, folder in zip(runs, folders, strict=True) if folder not in jobs]


def hand_over(scripts: Sequence[Script], dry_run: bool) -> None:
    """Submit every script (``without_job`` has made its folder), or print them. Exit code 1 if
    Slurm refuses one; the rest are not tried."""
    from aent.slurm.submission import SlurmError, submit

    if dry_run:
        print("\n".join(f"{each.text}\n# {shlex.join(each.command)}" for each in scripts))
        return
    for script in scripts:
        try:
            print(f"job {submit(script)}: {script.path}")
        except SlurmError as error:
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    print(f"aent: {error}", file=sys.stderr)
    raise typer.Exit(1)
