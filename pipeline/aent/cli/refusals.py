"""What every command answers to bad input: one clear sentence a fault, and exit code 2."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import typer

from aent.recipe.redact import redacted


def refuse(faults: Iterable[str]) -> NoReturn:
    """Say the faults and end the command."""
    for fault in faults:
        print(f"aent: {redacted(fault)}", file=sys.stderr)
    raise typer.Exit(2)


def refuse_unwritable(*files: Path | None) -> None:
    """Before work whose result is to stand in these files (None: not asked for)."""
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
    """Make the folder if need be; refuse one that nothing can be written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        refuse([f"{folder} cannot be written into: {error.strerror}"])
