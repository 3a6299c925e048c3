"""Whether Slurm asks a job to end early enough: by what its run's steps and checkpoints took."""

from __future__ import annotations

import re
from pathlib import Path

from aent.recipe.schema import Recipe
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE

LEAD_S = 300  # --signal of slurm/train.sbatch
LAST = 10  # steps that are looked at
SPARE = 1.2  # of the proposal: no step is as long as another


def too_short(recipe: Recipe, run_dir: Path) -> str | None:
    """A sentence where a step and a checkpoint together took longer than lies between Slurm's
    signal and the time limit (of ``cluster.flags``, else of the batch script); None where they fit,
    or before anything was measured."""
    path = run_dir / JOURNAL_FILE
    took: dict[str, dict[int, float]] = {"time/total": {}, "time/checkpoint": {}}
    for point in journal.read(path) if path.exists() else ():
        if point.key in took:
            took[point.key][point.step] = point.value
    if not took["time/total"]:
        return None
    step = max(took["time/total"][number] for number in sorted(took["time/total"])[-LAST:])
    save = max(took["time/checkpoint"].values(), default=0.0)
    lead = signal_lead(recipe)
    if step + save <= lead:
        return None
    every = recipe.checkpoint.every
    return (
        f"a step took up to {step:.0f} s and a checkpoint {save:.0f} s, but Slurm asks the job to "
        f"end {lead} s before its limit: what was not saved by then is lost (set cluster.flags: "
        f"[--signal=B:USR1@{SPARE * (step + save):.0f}]; checkpoint.every={every} is "
        f"{every * step:.0f} s)"
    )


def signal_lead(recipe: Recipe) -> int:
    """Seconds between the signal and the time limit."""
    for flag in recipe.cluster.flags:
        if given := re.fullmatch(r"--signal=.*@(\d+)", flag):
            return int(given[1])
    return LEAD_S
