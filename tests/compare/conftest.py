"""A comparison as its runs would leave it in MLflow, without the runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from aent.compare.arms import PlannedRun, plan
from aent.recipe.load import dump
from aent.slurm.sweep import parent_run
from aent.tracking.tracker import Tracker

STEPS, QUESTIONS, SAMPLES = 24, 6, 4
PLAIN = """
name: plain
steps: 24
model: {bundled: tiny-qwen2}
controller: {kind: constant, initial: 0}
entropy: {measure: full}
tracking: {system_metrics_every_s: 0}
"""
HELD = """
base: plain.yaml
change:
  name: held
  entropy: {measure: clamped, drop_fraction: .2}
  controller: {kind: band, initial: .1, low: .5, high: 1, step_size: .1, min: 0, max: 1}
"""


def write_recipes(folder: Path) -> list[str]:
    """Two arms."""
    for name, text in (("plain", PLAIN), ("held", HELD)):
        (folder / f"{name}.yaml").write_text(text)
    return [str(folder / f"{name}.yaml") for name in ("plain", "held")]


def entropy(arm: str, step: int) -> float:
    """The plain arm's entropy falls to nothing, the other arm's into its band."""
    return 2 * math.exp(-step / 4) + (0.6 if arm == "held" else 0.0)


def reward(arm: str, seed: int, step: int) -> float:
    return 0.1 + step / STEPS * (0.4 if arm == "held" else 0.2) + 0.01 * seed


def right(arm: str, seed: int, question: int) -> int:
    """How many of a question's answers are right after training."""
    return min(SAMPLES, (question + seed) % 3 + (arm == "held"))


def record(run: PlannedRun, parent: str) -> None:
    """The metrics that the run would have recorded."""
    tracking = run.recipe.tracking.model_copy(update={"parent_run_id": parent})
    run.run_dir.mkdir()
    (run.run_dir / "recipe.yaml").write_text(dump(run.recipe))
    tracker = Tracker(run.run_dir, run.recipe.model_copy(update={"tracking": tracking}))
    band, run_of = run.arm == "held", (run.arm, run.seed)
    for step in range(STEPS):
        values = {
            "reward/mean": reward(run.arm, run.seed, step),
            "policy/entropy": entropy(run.arm, step),
            "policy/clamped_entropy": entropy(run.arm, step),
            "controller/coefficient": 0.1 * band,
            "response/length_mean": 5.0,
            "response/truncated_share": 0.25,
            "response/distinct_answers": 3.0 + run.seed,
            "policy/entropy_error": 0.1 * entropy(run.arm, step),
            "gradient/predicted_policy": -entropy(run.arm, step),
            "gradient/predicted_bonus": 0.5 * entropy(run.arm, step),
            "entropy/change": entropy(run.arm, step) - entropy(run.arm, step - 1),
            "tokens/total": 100.0,
            "time/sample": 0.5,
            "time/train": 1.0,
            "time/evaluate": 7.0,
            "time/total": 8.5,
            "time/engines_busy": 7.5,
        }
        tracker.log(
            step, values | ({"controller/low": 0.5, "controller/high": 1.0} if band else {})
        )
    for steps in (0, STEPS):
        rows = [
            # seed 0 was recorded before the tables had "item" and "score"; the rewards of the
            # others have a penalty, which does not make a right answer wrong
            ({"item": q, "score": float(is_right)} if run.seed else {})
            | {"prompt": f"{run.seed}: {q}?", "reward": is_right - 0.2 * (run.seed > 0)}
            for q in range(QUESTIONS)
            for s in range(SAMPLES)
            for is_right in (steps > 0 and s < right(*run_of, q),)
        ]
        tracker.log_samples(steps, rows, "heldout")
    unfinished = run.arm == "plain" and run.seed == 2
    assert tracker.finish("KILLED" if unfinished else "FINISHED", timeout_s=300)


@pytest.fixture(scope="session")
def comparison(tmp_path_factory) -> Path:
    """The folder of a comparison of two arms with three seeds, one run of which is not finished."""
    folder = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        runs = plan(write_recipes(folder), [], 3, folder)
        for run in runs:
            record(run, parent_run(folder, run.recipe))
    return folder
