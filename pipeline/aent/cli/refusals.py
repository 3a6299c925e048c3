"""How every command refuses bad input: one clear sentence for each fault, and exit code 2; how it
warns."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import typer

from aent.recipe.redact import redacted


def refuse(faults: Iterable[str]) -> NoReturn:
    """Print the faults and end the command."""
    for fault in faults:
        print(f"aent: {redacted(fault)}", file=sys.stderr)
    raise typer.Exit(2)


def warn(doubts: Iterable[str]) -> None:
    """Print each doubt once, on stderr as ``refuse`` does; the command continues."""
    for doubt in dict.fromkeys(doubts):
        print(f"aent: warning: {redacted(doubt)}", file=sys.stderr)


def refuse_unwritable(*files: Path | None) -> None:
    """Refuse, before any work, files that cannot be written (None: no file was asked for)."""
    for file in files:
        if file is None:
            continue
        if not file.absolute().parent.is_dir():
            refuse([f"{file}: there is no folder {file.parent}"])
        existed = file.exists()
        try:
            file.open("ab").close()
        except OSError as error:
            refuse([f"{file} cannot be written: {error.strerror}"])
        if not existed:
            file.unlink()


def make_folder(folder: Path) -> None:
    """Create the folder if it is missing; refuse one that cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        refuse([f"{folder} cannot be written to: {error.strerror}"])
