"""How commands submit batch scripts: ``--dry-run`` prints them; else they are written and sent."""

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
    """Submit every script, or print them.

    Exit code 1 if one was not submitted: its job already waits or runs (the others are still
    submitted), or Slurm refused it (the rest are not tried).
    """
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
