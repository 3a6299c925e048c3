"""The runs of a comparison: every arm (a recipe) with every seed, each in its own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aent.checkpoint.resume import begun_otherwise
from aent.recipe.load import RecipeError, load
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE

OURS = ("name", "seed", "run_dir", "resume", "tracking.parent_run_id")  # may not be overridden


@dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed."""

    arm: str  # the recipe's name
    seed: int
    source: str  # the recipe, as the command line named it
    overrides: tuple[str, ...]  # of the command line, and the seed
    recipe: Recipe

    @property
    def run_dir(self) -> Path:
        return Path(self.recipe.run_dir or "")

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return journal.last_status(self.run_dir / JOURNAL_FILE) == "FINISHED"

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def plan(
    sources: Sequence[str], overrides: Sequence[str], seeds: int, folder: Path
) -> list[PlannedRun]:
    """Every arm with the seeds 0, 1, ...; all arms with seed 0 first, so that early results are
    comparable.

    A recipe that is named twice is one arm. Runs that have begun are resumed (``resume: auto``).
    Writes nothing.

    Raises RecipeError, one line per fault: a recipe cannot be loaded, arms cannot be compared, or
    ``folder`` has a run of another recipe.
    """
    if not sources:
        raise RecipeError("a comparison needs recipes: one for each arm")
    for override in overrides:
        if override.partition("=")[0] in OURS:
            raise RecipeError(f"override {override}: a comparison sets it for every run")
    sources = list({data_path(source).resolve(): source for source in sources}.values())
    faults: list[str] = []
    runs: list[PlannedRun] = []
    for seed in range(seeds):
        for source in sources:
            of_run = (*overrides, f"seed={seed}")
            try:
                recipe = load(data_path(source), of_run)
            except RecipeError as error:
                faults += str(error).splitlines()
                continue
            place = {"run_dir": str(folder / f"{recipe.name}-seed{seed}"), "resume": "auto"}
            recipe = recipe.model_copy(update=place)
            runs.append(PlannedRun(recipe.name, seed, source, of_run, recipe))
    faults = faults or [*_not_comparable(runs), *_made_otherwise(runs)]
    if faults:
        raise RecipeError("\n".join(dict.fromkeys(faults)))
    return runs


def _not_comparable(runs: Sequence[PlannedRun]) -> list[str]:
    faults = []
    by_arm: dict[str, PlannedRun] = {}
    for run in runs:
        other = by_arm.setdefault(run.arm, run)
        if other.source != run.source:
            faults.append(f"{run.source}: {other.source} has the same name, {run.arm}")
        if run.recipe.task != runs[0].recipe.task:
            faults.append(
                f"{run.source}: its task differs from that of {runs[0].source}, so their rewards "
                f"cannot "
                "be compared"
            )
        if run.recipe.checkpoint.every == 0:
            faults.append(
                f"{run.source}: with checkpoint.every=0 an interrupted comparison could not "
                f"continue"
            )
    return faults


def _made_otherwise(runs: Sequence[PlannedRun]) -> list[str]:
    """One sentence if the run in the folder began with another recipe than is planned now."""
    faults = []
    for run in runs:
        found = begun_otherwise(run.run_dir, run.recipe)
        faults += [f"{run.run_dir}: {change}: name another folder (--out)" for change in found]
    return faults
