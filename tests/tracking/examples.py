"""A small recipe, and responses as a run records them for traces, with a grader that has failed."""

from __future__ import annotations

from pathlib import Path

from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.tracking import journal
from aent.tracking.journal import Entity, Status
from aent.tracking.traced import Traced, TracedGrade, TracedStep

TIME = 1_700_000_000_000  # ms since 1970
PROMPT, RESPONSE = "What is 1 + 1? ünïcode", "It is **2**."

RECIPE = """
name: trial
model: {bundled: tiny-qwen2}
controller: {initial: 0}
tracking: {system_metrics_every_s: 0}
"""


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    """A recipe for an experiment of the folder's name."""
    path = folder / "r.yaml"
    path.write_text(RECIPE)
    return load(path, [f"tracking.experiment={folder.name}", *overrides])


def traced(step: int, sample: int, error: str = "") -> Traced:
    """A response to one prompt of two."""
    grades = (
        TracedGrade("right", "math_verify", 1.0, 0.0 if error else 1.0, {}, error, 0.25),
        TracedGrade("form", "python", 0.5, 0.75, {"short": 0.5}, "", 1.5),
        TracedGrade("opinion", "judge", 2.0, None, {}, "", 0.0),
    )
    return Traced(
        sample=sample, group=sample // 2, item=7 + sample // 2, prompt=PROMPT, response=RESPONSE,
        reward=0.0 if error else 1.375, entropy=0.35, logprob=-0.2, prompt_tokens=12, tokens=5,
        finish_reason="stop", first_version=step - 1, version=step, grades=grades,
    )  # fmt: skip


def traced_step(step: int) -> TracedStep:
    """Two responses; one grader did not score the second in time."""
    return TracedStep(step, TIME + step, (traced(step, 0), traced(step, 3, "timeout")))


def record(run_dir: Path, entity: str, name: str, text: str) -> None:
    """As the tracker does: the file, then the journal's line; the run is RUNNING before."""
    path = run_dir / journal.JOURNAL_FILE
    if not path.exists():
        journal.append(path, [Status(TIME, "RUNNING")])
    (run_dir / name).parent.mkdir(exist_ok=True)
    (run_dir / name).write_text(text, encoding="utf-8")
    journal.append(path, [Entity(TIME, entity, name)])
