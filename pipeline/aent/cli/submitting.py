"""How commands hand batch scripts to Slurm: shown by ``--dry-run``, else kept and submitted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from aent.cli.refusals import make_folder

if TYPE_CHECKING:
    from aent.slurm.render import Script


def hand_over(scripts: Sequence[Script], dry_run: bool) -> None:
    """Submit every script, or print them. Exit code 1 where one was not submitted: its job waits or
    runs, which keeps none of the others, or Slurm said no."""
    from aent.slurm.render import SlurmError, SubmittedError, submit

    if dry_run:
        print("\n".join(f"{each.text}\n# {shlex.join(each.command)}" for each in scripts))
        return
    refused = False
    for script in scripts:
        make_folder(script.path.parent)
        try:
            print(f"job {submit(script)}: {script.path}")
        except SlurmError as error:
            print(f"aent: {error}", file=sys.stderr)
            refused = True
            if not isinstance(error, SubmittedError):
                break
    if refused:
        raise typer.Exit(1)
