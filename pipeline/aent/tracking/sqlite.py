"""MLflow's store in a SQLite file: it appears when it is whole, and one that is not is named.

MLflow makes a store in some forty steps, each committed; a process that dies between two leaves a
file that no later run can use. So it is made under another name, under a lock.
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

MAKE_S = 300.0  # for this process, or another one, to make a store
APART_S = 2 * MAKE_S  # for a process that may wait for another one first
BUSY_S = 10.0  # for another process that writes


class StoreError(RuntimeError):
    """The SQLite file cannot be used; one sentence that names it, and how to mend it."""


def file_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for another one."""
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(name).absolute() if uri.startswith("sqlite:///") and name else None


def file_of_run(recipe: Recipe, run_dir: Path) -> Path | None:
    """The same of the run's store. Raises AddressError."""
    return file_of(tracking_uri(recipe, run_dir))


def make_ready(path: Path) -> None:
    """Make the store unless it is there. Raises StoreError."""
    if _is_there(path):
        return _check(path)
    try:
        with locked(_lock_file(path), MAKE_S, "make MLflow's store"):
            if not _is_there(path):
                _make(path)
    except OSError as error:
        raise StoreError(f"MLflow's store {path} cannot be made: {error}") from error
    _check(path)


def make_ready_apart(path: Path) -> None:
    """``make_ready`` in a process of its own if there is something to make: MLflow's import costs
    seconds and memory that the caller does not want to spend. Raises StoreError."""
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
    """A process that makes a store while its starter does something else."""

    path: Path
    child: Child
    deadline: float  # of time.monotonic

    @staticmethod
    def begin(path: Path, log: Path) -> Making | None:
        """Start it, its output in ``log``; None if the store is there."""
        if _is_there(path):
            return None
        name = f"MLflow's store {path}"
        child = Child.start(name, _command(path), env=os.environ, log_path=log)
        return Making(path, child, time.monotonic() + APART_S)

    def done(self) -> bool:
        """Whether the store is made. Raises StoreError if that failed or has taken too long."""
        code = self.child.poll()
        if code is None and time.monotonic() > self.deadline:
            raise _late(self.path)
        if code:
            said = "" if code < 0 else self.child.tail(1)  # killed: the log's last line is older
            raise _failed(self.path, said or self.child.describe_exit())
        return code == 0


def check(path: Path) -> None:
    """Raise StoreError for a file that is no whole store, and for one that is not there and whose
    folder cannot be written to."""
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
    return StoreError(f"MLflow's store {path} was not made within {APART_S:.0f} s")


def _failed(path: Path, said: str) -> StoreError:
    why = (said.strip().splitlines() or ["no reason given"])[-1]
    return StoreError(why if str(path) in why else f"MLflow's store {path}: {why}")


def _is_there(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _check(path: Path) -> None:
    """Raise StoreError for a file whose making was cut short: the last thing in it, MLflow's own
    first experiment, is missing."""
    try:
        address = f"{path.as_uri()}?mode=rw"  # a killed writer's transaction is rolled back
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_S)) as database:
            if database.execute("SELECT count(*) FROM experiments").fetchone()[0]:
                return
        why = "it has no experiment"
    except sqlite3.Error as error:
        why = str(error)
        if "locked" in why:  # somebody writes: it is whole
            return
        if "no such table" not in why and "not a database" not in why:
            raise StoreError(f"MLflow's store {path} cannot be read: {why}") from error
    raise StoreError(
        f"MLflow's store {path} is not whole ({why}): a process died while it made the file, or it "
        "is no store at all; move it away, and the next run makes a new one"
    )


def _make(path: Path) -> None:
    partial = path.with_name(f".{path.name}.new")
    for left in (partial, partial.with_name(f"{partial.name}-journal")):  # of one that died here
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
