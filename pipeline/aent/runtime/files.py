"""Small files of a run's folder, on file systems that sometimes fail."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")
ATTEMPTS, PAUSE_S = 3, 1.0  # attempts to read, and seconds between two
LOOK_S = 0.2  # seconds between two attempts to lock


def read_again(read: Callable[[], T]) -> T:
    """The result of ``read``, which is retried after an OSError (EIO, ESTALE); the last error is
    raised. A missing file is not retried."""
    for _ in range(ATTEMPTS - 1):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(PAUSE_S)
    return read()


def write_whole(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a text file that is either complete or absent, even after a power failure.

    mode: of a new file, minus the umask; 0o600 if only its owner may read it. Raises OSError; then
    the previous file is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def folder_problem(folder: Path) -> str | None:
    """Why a folder, which need not exist yet, could not be written to; None if it could."""
    place = nearest_existing(folder)
    if not place.is_dir():
        return f"{folder} cannot be created: {place} is not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{folder} cannot be written: no permission in {place}"
    return None


class NoLocksError(OSError):
    """The file system does not support flock (some parallel ones need a mount option for it)."""


def _flock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        why = f"its file system does not support locks (flock: {error.strerror})"
        raise NoLocksError(error.errno, why, str(path)) from error


@contextmanager
def locked(path: Path, timeout_s: float, what: str) -> Iterator[None]:
    """Hold the lock of this file, which is created and stays.

    what: the purpose, as an infinitive. Raises TimeoutError if another process holds it for
    ``timeout_s``, NoLocksError if the file system has no locks, OSError if the file cannot be
    created.
    """
    deadline = time.monotonic() + timeout_s
    with path.open("w") as file:
        while True:
            try:
                _flock(file, path)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{path}: another process has held it for {timeout_s:g} s, to {what}"
                    ) from None
                time.sleep(LOOK_S)
        yield
