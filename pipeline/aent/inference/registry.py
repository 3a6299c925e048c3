"""Where a run's engines are, and their token: files in the run folder.

The process that starts engine INDEX (the launcher, a task of a Slurm job) writes
``engines/INDEX.json``, and the trainer's rank 0 reads it; rank 0 writes ``engines/INDEX.lost``.
``token`` is made once per run, readable only by its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from aent.inference.client import EngineClient
from aent.inference.http import EngineError
from aent.runtime.files import read_again
from aent.runtime.log import log

POLL_S = 0.2


def make_token(run_dir: Path) -> Path:
    """Write the run's token if there is none; return its file (mode 600)."""
    path = run_dir / "token"
    with contextlib.suppress(FileExistsError):
        _write_token(path, secrets.token_urlsafe(32))
    return path


def share_token(folder: Path, run_dir: Path) -> None:
    """Copy the run's token to ``folder``, which is created if it does not exist."""
    token = read_token(make_token(folder))
    (run_dir / "token").unlink(missing_ok=True)
    _write_token(run_dir / "token", token)


def _write_token(path: Path, token: str) -> None:
    """Raises FileExistsError rather than write to a file that others may have open."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w") as opened:
        opened.write(token)


def read_token(path: Path) -> str:
    """The token in this file. Raises PermissionError if others may read it."""
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path} can be read by others: chmod 600, or better a new token")
    return path.read_text().strip()


def clear(run_dir: Path) -> None:
    """Forget the engines of an earlier start."""
    for path in (run_dir / "engines").glob("*"):
        path.unlink()


def publish(run_dir: Path, index: int, url: str, log_path: Path) -> None:
    """Publish the address of engine ``index``."""
    # an engine that was lost before may have had the same address
    (run_dir / "engines" / f"{index}.lost").unlink(missing_ok=True)
    _write(run_dir, index, {"url": url, "log": str(log_path)})


def publish_failure(run_dir: Path, index: int, error: str) -> None:
    """Publish that engine ``index`` cannot start, and why."""
    _write(run_dir, index, {"error": error})


def give_up(run_dir: Path, url: str) -> None:
    """Publish that the trainer has lost the engine at ``url``, which may be one of the run's own. A
    failure to write is only reported on stderr: the run can continue with the other engines."""
    for path in (run_dir / "engines").glob("*.json"):
        try:
            if json.loads(path.read_text()).get("url") == url:
                path.with_suffix(".lost").write_text(url)
        except OSError as error:
            log.warning(
                f"aent: {path.with_suffix('.lost')} cannot be written ({error}): engine "
                f"{url} is not restarted"
            )


def is_given_up(run_dir: Path, index: int, url: str) -> bool:
    """Whether the trainer has lost engine ``index``, at this address."""
    try:
        return (run_dir / "engines" / f"{index}.lost").read_text() == url
    except OSError:  # missing, or the file system did not answer: it will be asked again
        return False


def published(run_dir: Path, count: int) -> list[EngineClient]:
    """A client for each of the ``count`` engines that have an address now."""
    entries = [_read(run_dir, index) for index in range(count)]
    return [_client(run_dir, entry) for entry in entries if entry is not None and "url" in entry]


async def wait(
    run_dir: Path, count: int, timeout_s: float, on_progress: Callable[[], None] | None = None
) -> None:
    """Return when ``count`` engines are published.

    Raises EngineError, with the engine's own message if there is one, if an engine failed or is not
    published after ``timeout_s`` seconds.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    index = 0
    while index < count:
        entry = _read(run_dir, index)
        if entry is None:
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(
                    f"engine {index} of {count} is not in {run_dir / 'engines'} after "
                    f"{timeout_s:.0f} s: nothing has started it"
                )
            if on_progress is not None:
                on_progress()
            await asyncio.sleep(POLL_S)
        elif "error" in entry:
            raise EngineError(entry["error"])
        else:
            index += 1


def _client(run_dir: Path, entry: dict[str, str]) -> EngineClient:
    token = read_token(run_dir / "token")
    return EngineClient(entry["url"], token=token, has_to_prove=True, log_path=Path(entry["log"]))


def _write(run_dir: Path, index: int, entry: dict[str, str]) -> None:
    folder = run_dir / "engines"
    folder.mkdir(exist_ok=True)
    beside = folder / f"{index}.json.new"
    beside.write_text(json.dumps(entry))
    beside.replace(folder / f"{index}.json")  # complete or absent


def _read(run_dir: Path, index: int) -> dict[str, str] | None:
    path = run_dir / "engines" / f"{index}.json"
    try:
        return json.loads(read_again(path.read_text))
    except FileNotFoundError:
        return None
