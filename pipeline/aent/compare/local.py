"""A comparison on this machine: one run after another, each as by ``aent train``.

The runs share their engines (``inference.shared``): the next run takes over those of the last one.
"""

from __future__ import annotations

import fcntl
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from aent.compare.arms import PlannedRun
from aent.inference.shared import SharedEngines
from aent.launch.launcher import launch
from aent.runtime.signals import CHECKPOINTED
from aent.slurm.sweep import SweepError, parent_run
from aent.tracking.display import clock


def run_all(runs: Sequence[PlannedRun], folder: Path) -> int:
    """Do the runs that are not finished; return the exit code.

    0: all are finished. 1: some failed (the others were done), or none could begin. Else the code
    of a run that a signal stopped; the comparison stops with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "at_work").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the file is closed
        except BlockingIOError:
            _say(f"another aent compare is running in {folder}", sys.stderr)
            return 1
        engines = SharedEngines(folder.absolute())
        try:
            return _run_all(runs, folder, engines)
        finally:
            engines.stop()


def _run_all(runs: Sequence[PlannedRun], folder: Path, engines: SharedEngines) -> int:
    left = [run for run in runs if not run.finished]
    done = len(runs) - len(left)
    if done:
        _say(f"{done} of {len(runs)} runs are finished already")
    if not left:
        return 0
    try:
        parent = parent_run(folder, left[0].recipe)
    except SweepError as error:
        _say(str(error), sys.stderr)
        return 1
    failed: list[PlannedRun] = []
    took: list[float] = []
    for index, run in enumerate(left):
        ahead = clock(statistics.fmean(took) * (len(left) - index)) if took else "?"
        _say(f"run {done + index + 1} of {len(runs)}: {run} (left {ahead})")
        started = time.monotonic()
        code = _launch(run, parent, engines)
        took.append(time.monotonic() - started)
        if code == CHECKPOINTED or code > 128:
            _say(f"stopped in {run}: the same command continues there", sys.stderr)
            return code
        if code:
            failed.append(run)
            _say(f"{run} failed (its folder: {run.run_dir}); the others continue", sys.stderr)
    for run in failed:
        _say(f"failed: {run}: the same command retries it", sys.stderr)
    return 1 if failed else 0


def _launch(run: PlannedRun, parent: str, engines: SharedEngines) -> int:
    update = {"tracking": run.recipe.tracking.model_copy(update={"parent_run_id": parent})}
    return launch(run.recipe.model_copy(update=update), engines)


def _say(text: str, file: TextIO = sys.stdout) -> None:
    print(f"aent: {text}", file=file, flush=True)
