"""Where a run's engines are, and the token that they ask for: files in the run folder.

``engines/INDEX.json`` is written by whoever starts engine INDEX (the launcher, a task of a Slurm
job) and read by the trainer's rank 0; ``engines/INDEX.lost`` the other way round. ``token`` is made
once per run, readable by its owner alone.
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
    """Write the run's token, unless there is one; return its file (mode 600)."""
    path = run_dir / "token"
    with contextlib.suppress(FileExistsError):
        _write_token(path, secrets.token_urlsafe(32))
    return path


def share_token(folder: Path, run_dir: Path) -> None:
    """The run's token becomes that of ``folder``, which is made unless there is one."""
    token = read_token(make_token(folder))
    (run_dir / "token").unlink(missing_ok=True)
    _write_token(run_dir / "token", token)


def _write_token(path: Path, token: str) -> None:
    """Raises FileExistsError rather than writing into a file that others may have open."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w") as opened:
        opened.write(token)


def read_token(path: Path) -> str:
    """The token in this file. Raises PermissionError where others may read it."""
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path} can be read by others: chmod 600, or better a new token")
    return path.read_text().strip()


def clear(run_dir: Path) -> None:
    """Forget the engines of an earlier start."""
    for path in (run_dir / "engines").glob("*"):
        path.unlink()


def publish(run_dir: Path, index: int, url: str, log_path: Path) -> None:
    """Say where engine ``index`` listens."""
    # one that was lost before it may have had the same address
    (run_dir / "engines" / f"{index}.lost").unlink(missing_ok=True)
    _write(run_dir, index, {"url": url, "log": str(log_path)})


def publish_failure(run_dir: Path, index: int, error: str) -> None:
    """Say that engine ``index`` will not come, and why."""
    _write(run_dir, index, {"error": error})


def give_up(run_dir: Path, url: str) -> None:
    """Say that the trainer has lost the engine at ``url``, which may be one of the run's own. Where
    that cannot be said it is told on stderr: the others are enough to go on with."""
    for path in (run_dir / "engines").glob("*.json"):
        try:
            if json.loads(path.read_text()).get("url") == url:
                path.with_suffix(".lost").write_text(url)
        except OSError as error:
            log.warning(
                f"aent: {path.with_suffix('.lost')} cannot be written ({error}): nobody starts the "
                f"engine {url} again"
            )


def is_given_up(run_dir: Path, index: int, url: str) -> bool:
    """Whether the trainer has lost engine ``index``, at this address."""
    try:
        return (run_dir / "engines" / f"{index}.lost").read_text() == url
    except OSError:  # not there, or the file system does not say: it is asked again
        return False


def published(run_dir: Path, count: int) -> list[EngineClient]:
    """A client for each of the ``count`` engines that has an address now."""
    entries = [_read(run_dir, index) for index in range(count)]
    return [_client(run_dir, entry) for entry in entries if entry is not None and "url" in entry]


async def wait(
    run_dir: Path, count: int, timeout_s: float, on_progress: Callable[[], None] | None = None
) -> None:
    """Return when ``count`` engines are published.

    Raises EngineError, with the engine's own words where there are any, if one failed or is not
    there after ``timeout_s`` seconds.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    index = 0
    while index < count:
        entry = _read(run_dir, index)
        if entry is None:
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(
                    f"engine {index} of {count} is not in {run_dir / 'engines'} after "
                    f"{timeout_s:.0f} s: whatever should start it has not"
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
    beside.replace(folder / f"{index}.json")  # whole or not there


def _read(run_dir: Path, index: int) -> dict[str, str] | None:
    path = run_dir / "engines" / f"{index}.json"
    try:
        return json.loads(read_again(path.read_text))
    except FileNotFoundError:
        return None
