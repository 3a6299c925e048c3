"""Where a run's engines are, and the token that they ask for: files in the run folder.

``engines/INDEX.json`` is written by whoever starts engine INDEX (the launcher, a task of a Slurm
job) and read by the trainer's rank 0. ``token`` is made once per run, readable by its owner alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from aent.rollout.client import EngineClient, EngineError

POLL_S = 0.2


def make_token(run_dir: Path) -> Path:
    """Write the run's token, unless there is one; return its file (mode 600)."""
    path = run_dir / "token"
    with contextlib.suppress(FileExistsError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w") as token:
            token.write(secrets.token_urlsafe(32))
    return path


def read_token(path: Path) -> str:
    """The token in this file. Raises PermissionError where others may read it."""
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path} can be read by others: chmod 600, or better a new token")
    return path.read_text().strip()


def clear(run_dir: Path) -> None:
    """Forget the engines of an earlier start."""
    for path in (run_dir / "engines").glob("*.json"):
        path.unlink()


def publish(run_dir: Path, index: int, url: str, log_path: Path) -> None:
    """Say where engine ``index`` listens."""
    _write(run_dir, index, {"url": url, "log": str(log_path)})


def publish_failure(run_dir: Path, index: int, error: str) -> None:
    """Say that engine ``index`` will not come, and why."""
    _write(run_dir, index, {"error": error})


async def clients(
    run_dir: Path, count: int, timeout_s: float, on_progress: Callable[[], None] | None = None
) -> list[EngineClient]:
    """Wait until ``count`` engines are published; a client for each, in order.

    Raises EngineError, with the engine's own words where there are any, if one failed or is not
    there after ``timeout_s`` seconds.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    found: list[EngineClient] = []
    while len(found) < count:
        entry = _read(run_dir, len(found))
        if entry is None:
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(
                    f"engine {len(found)} of {count} is not in {run_dir / 'engines'} after "
                    f"{timeout_s:.0f} s: whatever should start it has not"
                )
            if on_progress is not None:
                on_progress()
            await asyncio.sleep(POLL_S)
        elif "error" in entry:
            raise EngineError(entry["error"])
        else:
            token = read_token(run_dir / "token")
            found.append(EngineClient(entry["url"], token=token, log_path=Path(entry["log"])))
    return found


def _write(run_dir: Path, index: int, entry: dict[str, str]) -> None:
    folder = run_dir / "engines"
    folder.mkdir(exist_ok=True)
    beside = folder / f"{index}.json.new"
    beside.write_text(json.dumps(entry))
    beside.replace(folder / f"{index}.json")  # whole or not there


def _read(run_dir: Path, index: int) -> dict[str, str] | None:
    try:
        return json.loads((run_dir / "engines" / f"{index}.json").read_text())
    except FileNotFoundError:
        return None
