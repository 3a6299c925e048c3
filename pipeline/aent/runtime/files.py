"""Small files of a run's folder, on file systems that fail now and then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ATTEMPTS, PAUSE_S = 3, 1.0  # of reading, and between two


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
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
