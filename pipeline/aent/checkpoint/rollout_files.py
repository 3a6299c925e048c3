"""A step's rollouts on disk, written before the step's update and kept while a checkpoint needs
them.

A step that is repeated after a kill reads them: an engine's tokens may depend on which requests
share a batch, so sampling again would not give the same step.

``run_dir/rollouts/step_000010.npz``: token ids, log-probs, weight versions and the temperature as
arrays, the rest as JSON. A zip file has a checksum (CRC-32) of everything in it.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from aent.data.rollout import Grade, Rollout, Verdict
from aent.data.sample import Sample
from aent.runtime.files import read_again, write_whole
from aent.runtime.log import log

FOLDER = "rollouts"
BEGUN = "begun"  # a file beside them: the newest step whose sampling has ever begun
NAME = re.compile(r"step_(\d{6,})\.npz")
ARRAYS = {
    "prompt_ids": np.int64,
    "response_ids": np.int64,
    "logprobs": np.float64,
    "versions": np.int64,
}


def path_of(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step_{step:06d}.npz"


def begin(run_dir: Path, step: int) -> bool:
    """Record that sampling of the step begins; return whether it had begun before."""
    newest = begun(run_dir)
    if newest is not None and step <= newest:
        return True
    path = run_dir / FOLDER / BEGUN
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, f"{step}\n")
    except OSError as error:
        log.warning(f"aent: {path}: {error} (whether step {step} is sampled twice is not counted)")
    return False


def begun(run_dir: Path) -> int | None:
    """The newest step whose sampling has ever begun, if it is known."""
    try:
        return int((run_dir / FOLDER / BEGUN).read_text())
    except (OSError, ValueError):
        return None


def write(run_dir: Path, step: int, rollout: Rollout) -> None:
    """Write the step's rollouts; the file appears only when it is complete."""
    path = path_of(run_dir, step)
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for name, dtype in ARRAYS.items():
        rows = [getattr(sample, name) for sample in rollout.samples]
        arrays[name] = np.concatenate([np.asarray(row, dtype) for row in rows])
        arrays[f"{name}_lengths"] = np.asarray([len(row) for row in rows])
    rest = [
        {k: v for k, v in vars(sample).items() if k not in ARRAYS}
        | {"prompt": prompt, "response": response, "verdict": asdict(verdict)}
        for sample, prompt, response, verdict in zip(
            rollout.samples, rollout.prompts, rollout.responses, rollout.verdicts
        )
    ]
    if rollout.temperature is not None:
        arrays["temperature"] = np.asarray(rollout.temperature)
    arrays["anew"] = np.asarray(rollout.anew)
    arrays["outcomes"] = np.asarray([[i, *counts] for i, counts in rollout.outcomes.items()])
    arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read(run_dir: Path, step: int) -> Rollout | None:
    """The step's rollouts; None if there are none, or if the file is damaged (it is named on
    stderr). Raises OSError if the file system cannot read it: that is not damage."""
    path = path_of(run_dir, step)
    if not path.exists():
        return None
    content = io.BytesIO(read_again(path.read_bytes))
    try:
        with zipfile.ZipFile(content) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"the checksum of {broken} is wrong")
        content.seek(0)
        with np.load(content) as arrays:
            return _rollout(dict(arrays))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        log.warning(f"aent: {path} is damaged ({error}): step {step} is sampled again")
        return None


def _rollout(arrays: dict[str, np.ndarray]) -> Rollout:
    rest = json.loads(arrays["rest"].tobytes())
    columns = {
        name: [
            part.tolist()
            for part in np.split(arrays[name], arrays[f"{name}_lengths"].cumsum()[:-1])
        ]
        for name in ARRAYS
    }
    prompts, responses, verdicts = (
        [row.pop(name) for row in rest] for name in ("prompt", "response", "verdict")
    )
    samples = [
        Sample(**row, **{name: columns[name][i] for name in ARRAYS}) for i, row in enumerate(rest)
    ]
    # files of earlier versions have no temperature, no outcomes, and no mark of a second sampling
    temperature = float(arrays["temperature"]) if "temperature" in arrays else None
    outcomes = arrays["outcomes"].tolist() if "outcomes" in arrays else []
    return Rollout(
        samples,
        prompts,
        responses,
        [_verdict(**v) for v in verdicts],
        temperature,
        {item: (right, judged) for item, right, judged in outcomes},
        bool(arrays.get("anew", False)),
    )


def _verdict(reward: float, error: str, grades: Sequence[dict[str, Any]] = ()) -> Verdict:
    """Default values are for files of earlier versions, which have no grades."""
    return Verdict(reward, error, tuple(Grade(**grade) for grade in grades))


def recorded_until(run_dir: Path, step: int) -> int:
    """The first step, from ``step`` on, that has no complete file of rollouts."""
    return next(s for s in count(step) if read(run_dir, s) is None)


def forget(run_dir: Path, *, before: int = 0, from_step: int | None = None) -> None:
    """Remove the rollouts of steps below ``before``, and of ``from_step`` and all later ones.

    Raises OSError if a file of ``from_step`` or later cannot be removed, because it must not be
    read again; an older one that cannot be removed is named on stderr.
    """
    for step, path in recorded(run_dir).items():
        if from_step is not None and step >= from_step:
            path.unlink()
        elif step < before:
            try:
                path.unlink()
            except OSError as error:
                log.warning(f"aent: {path} cannot be removed: {error}")


def recorded(run_dir: Path) -> dict[int, Path]:
    """The file of every step that has one; files with other names are not ours."""
    named = ((NAME.fullmatch(p.name), p) for p in (run_dir / FOLDER).glob("step_*.npz"))
    return {int(name[1]): path for name, path in named if name}
