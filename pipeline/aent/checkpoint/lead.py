"""How long before its time limit Slurm must signal a job, and how often to save, computed from the
time that the run's steps and checkpoints took."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aent.recipe.schema import Recipe
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE

LEAD_S = 300  # --signal of slurm/train.sbatch
MARGIN_S = 60  # its SAVE_MARGIN: this long before the job's end, it stops waiting for unsaved work
VARIABLE = "AENT_SIGNAL_LEAD"  # in the job's tasks: seconds between its own --signal and its end
LAST = 10  # number of newest steps that are used
SPARE = 1.2  # factor of the proposed lead, because steps vary in length
LOSS_S = 86400.0  # time between two losses of a node or preemptions: an assumption
SAVING = ("time/checkpoint", "time/publish")  # a checkpoint's phases, recorded with the next step


@dataclass(frozen=True)
class Took:
    """Longest time, in seconds, of the run's newest steps without a checkpoint, and of its
    checkpoints."""

    step: float
    save: float

    @staticmethod
    def of(series: Mapping[str, Mapping[int, float]]) -> Took | None:
        """From metrics by name and step; None before a step was measured."""
        total = series.get("time/total", {})
        if not total:
            return None
        saves = [series.get(key, {}) for key in SAVING]
        saved = {step: sum(save.get(step, 0.0) for save in saves) for step in total}
        newest = sorted(total)[-LAST:]
        return Took(max(total[step] - saved[step] for step in newest), max(saved.values()))

    @staticmethod
    def in_folder(run_dir: Path) -> Took | None:
        """From the journal of the run in this folder."""
        path, series = run_dir / JOURNAL_FILE, dict[str, dict[int, float]]()
        for point in journal.read(path) if path.exists() else ():
            if point.key in ("time/total", *SAVING):
                series.setdefault(point.key, {})[point.step] = point.value
        return Took.of(series)

    def fits(self, lead_s: float) -> bool:
        """Whether a step that has just begun when Slurm's signal arrives, and the checkpoint after
        it, end before the batch script stops waiting."""
        return self.step + self.save <= lead_s - margin()

    def describe(self, lead_s: float, every: int) -> str:
        """One sentence: what this means for ``checkpoint.every`` and for the signal's lead."""
        told = (
            f"a step takes up to {self.step:.0f} s and a checkpoint {self.save:.0f} s; Slurm asks "
            f"the job to end {lead_s:.0f} s before its limit, and {margin()} s before the limit "
            "the batch script stops waiting for unsaved work (SAVE_MARGIN)"
        )
        if not self.fits(lead_s):
            told += (
                ": too late for a step and a checkpoint (set cluster.flags: "
                f"[--signal=B:USR1@{SPARE * (self.step + self.save) + margin():.0f}])"
            )
        if every:
            told += (
                f"; checkpoint.every={every} is {every * self.step:.0f} s of work that a lost node "
                f"costs, {self.best_every()} would cost least with one loss a day (Young 1974)"
            )
        return told

    def best_every(self) -> int:
        """Steps between checkpoints that lose the least time to saving and repeating together:
        sqrt(2 x time of a checkpoint x time between losses) (Young, 1974, Comm. ACM 17(9))."""
        return max(1, round(math.sqrt(2 * self.save * LOSS_S) / max(self.step, 1e-9)))


def signal_lead(recipe: Recipe) -> int:
    """Seconds between the signal and the time limit: from ``cluster.flags``, else the script's."""
    for flag in recipe.cluster.flags:
        if given := re.fullmatch(r"--signal=.*@(\d+)", flag):
            return int(given[1])
    return LEAD_S


def margin() -> int:
    """Seconds of the batch script's SAVE_MARGIN, if whoever submitted the job exported it."""
    given = os.environ.get("SAVE_MARGIN", "")
    return int(given) if given.isdecimal() else MARGIN_S


def own_lead() -> int | None:
    """``signal_lead`` of the job that this process is a task of; None if no batch script of ours
    started it."""
    given = os.environ.get(VARIABLE)
    return int(given) if given else None
