"""How commands submit batch scripts: ``--dry-run`` prints them; else they are written and sent."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import typer

from aent.cli.refusals import make_folder, refuse

if TYPE_CHECKING:
    from aent.slurm.render import Script, ScriptedRun


def hand_over_several(runs: Sequence[ScriptedRun], folder: Path, said: str, dry_run: bool) -> None:
    """Submit the runs of a sweep or comparison that no job waits for or works on, or print the
    scripts of all. ``folder`` and ``said`` as for ``render_several``.

    Exit code 2, before Slurm is asked, if they do not fit the nodes; else as ``hand_over``.
    """
    from aent.slurm.render import render_several

    try:
        scripts = render_several(runs, folder, said)
    except ValueError as error:
        refuse([f"cluster: {error}"])
    if not dry_run:
        left = without_job(runs)
        scripts = render_several(left, folder, said) if left else []
    hand_over(scripts, dry_run)


def without_job(runs: Sequence[ScriptedRun], told: TextIO = sys.stdout) -> list[ScriptedRun]:
    """The runs that no job of this user waits for or works on; one line to ``told`` for each
    other run.

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
        print(f"aent: job {job} is already waiting or running: {folder.absolute()}", file=told)
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
