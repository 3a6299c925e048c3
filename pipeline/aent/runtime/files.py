"""Small files of a run's folder, on file systems that fail now and then."""

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
ATTEMPTS, PAUSE_S = 3, 1.0  # of reading, and between two
LOOK_S = 0.2  # between two looks at a lock


def read_again(read: Callable[[], T]) -> T:
    """What ``read`` returns; an OSError (EIO, ESTALE) costs another attempt, the last one is
    raised. A file that is not there is not waited for."""
    for _ in range(ATTEMPTS - 1):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(PAUSE_S)
    return read()


def write_whole(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a text file that is there whole or not at all, even after a loss of power.

    mode: of a new file, less the umask; 0o600 for what only its owner may read. Raises OSError,
    with what was there before left as it was.
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
    """Why nothing could be written into a folder, which need not be there yet; None if it could."""
    place = nearest_existing(folder)
    if not place.is_dir():
        return f"{folder} cannot be made: {place} is no folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{folder} cannot be written: no permission in {place}"
    return None


class NoLocksError(OSError):
    """The file system has no flock (some parallel ones want a mount option for it)."""


def _flock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        why = f"its file system knows no locks (flock: {error.strerror})"
        raise NoLocksError(error.errno, why, str(path)) from error


@contextmanager
def locked(path: Path, timeout_s: float, what: str) -> Iterator[None]:
    """Hold the lock of this file, which is made and stays.

    what: an infinitive, what it is held for. Raises TimeoutError if another process has it for
    ``timeout_s``, NoLocksError where the file system knows none, OSError where the file cannot be
    made.
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
