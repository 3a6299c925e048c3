"""MLflow's store in a SQLite file: it appears when it is complete; an incomplete one is reported.

MLflow creates a store in about forty committed steps. A process that dies between two of them
leaves a file that no later run can use. So the file is created under another name and a lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from aent.recipe.schema import Recipe
from aent.runtime.children import Child
from aent.runtime.files import locked
from aent.tracking.address import tracking_uri

MAKE_S = 300.0  # seconds for this process, or another one, to create a store
APART_S = 2 * MAKE_S  # seconds for a process that may first wait for another one
BUSY_S = 10.0  # seconds to wait for another process that writes


class StoreError(RuntimeError):
    """The SQLite file cannot be used; one sentence that names it and says what to do."""


def file_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(name).absolute() if uri.startswith("sqlite:///") and name else None


def file_of_run(recipe: Recipe, run_dir: Path) -> Path | None:
    """The same of the run's store. Raises AddressError."""
    return file_of(tracking_uri(recipe, run_dir))


def make_ready(path: Path) -> None:
    """Create the store unless it exists. Raises StoreError."""
    if _is_there(path):
        return _check(path)
    try:
        with locked(_lock_file(path), MAKE_S, "create MLflow's store"):
            if not _is_there(path):
                _make(path)
    except OSError as error:
        raise StoreError(f"MLflow's store {path} cannot be made: {error}") from error
    _check(path)


def make_ready_apart(path: Path) -> None:
    """Run ``make_ready`` in a process of its own if the store does not exist, because importing
    MLflow takes seconds and memory. Raises StoreError."""
    check(path)
    if _is_there(path):
        return
    try:
        done = subprocess.run(_command(path), capture_output=True, text=True, timeout=APART_S)
    except subprocess.TimeoutExpired:
        raise _late(path) from None
    if done.returncode:
        raise _failed(path, done.stderr)


@dataclass(frozen=True)
class Making:
    """A process that creates a store while its parent does something else."""

    path: Path
    child: Child
    deadline: float  # of time.monotonic

    @staticmethod
    def begin(path: Path, log: Path) -> Making | None:
        """Start it with its output in ``log``; None if the store exists."""
        if _is_there(path):
            return None
        name = f"MLflow's store {path}"
        child = Child.start(name, _command(path), env=os.environ, log_path=log)
        return Making(path, child, time.monotonic() + APART_S)

    def done(self) -> bool:
        """Whether the store exists by now. Raises StoreError if creating it failed or took too
        long."""
        code = self.child.poll()
        if code is None and time.monotonic() > self.deadline:
            raise _late(self.path)
        if code:
            # it was killed, so the log's last line is not the reason
            said = "" if code < 0 else self.child.tail(1)
            raise _failed(self.path, said or self.child.describe_exit())
        return code == 0


def check(path: Path) -> None:
    """Raise StoreError if the file is not a complete store, or if it does not exist and its folder
    cannot be written to."""
    if _is_there(path):
        return _check(path)
    try:
        _lock_file(path).touch()
    except OSError as error:
        raise StoreError(f"MLflow's store {path} cannot be made: {error}") from error


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _command(path: Path) -> list[str]:
    return [sys.executable, "-m", "aent.tracking.sqlite", str(path)]


def _late(path: Path) -> StoreError:
    return StoreError(f"MLflow's store {path} was not created within {APART_S:.0f} s")


def _failed(path: Path, said: str) -> StoreError:
    why = (said.strip().splitlines() or ["no reason given"])[-1]
    return StoreError(why if str(path) in why else f"MLflow's store {path}: {why}")


def _is_there(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _check(path: Path) -> None:
    """Raise StoreError if creating the file was interrupted: the last entry, MLflow's own first
    experiment, is missing."""
    try:
        address = f"{path.as_uri()}?mode=rw"  # a killed writer's transaction is rolled back
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_S)) as database:
            if database.execute("SELECT count(*) FROM experiments").fetchone()[0]:
                return
        why = "it has no experiment"
    except sqlite3.Error as error:
        why = str(error)
        if "locked" in why:  # another process writes to it, so it is complete
            return
        if "no such table" not in why and "not a database" not in why:
            raise StoreError(f"MLflow's store {path} cannot be read: {why}") from error
    raise StoreError(
        f"MLflow's store {path} is incomplete ({why}): a process died while it created the file, "
        f"or the "
        "file is no MLflow store; move it away, and the next run creates a new one"
    )


def _make(path: Path) -> None:
    partial = path.with_name(f".{path.name}.new")
    # left by a process that died here
    for left in (partial, partial.with_name(f"{partial.name}-journal")):
        left.unlink(missing_ok=True)
    _fill(f"sqlite:///{partial}")
    os.replace(partial, path)


def _fill(uri: str) -> None:
    from aent.tracking.client import mlflow_client

    mlflow_client(uri).search_experiments()


if __name__ == "__main__":
    try:
        make_ready(Path(sys.argv[1]))
    except StoreError as error:
        sys.exit(str(error))
