"""Every entropy control by itself: ten steps of the tiny recipe, on one engine for all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from aent.algorithm.entropy_controls import CONTROLS
from e2e.jobs import Job

pytestmark = [pytest.mark.slow, pytest.mark.full]

STEPS = 10
FULL = "entropy={measure: full}"
COEFFICIENTS = {
    "none": ["controller={kind: constant, initial: 0}"],
    "constant bonus": [FULL, "controller={kind: constant, initial: .001}"],
    "AEnt": [],  # the recipe's own
    "clip-higher": ["algorithm={clip_low: .2, clip_high: .28}"],
    "Skywork-OR1": [
        FULL,
        "controller={kind: target, initial: 0, target: 4.5, step_size: 1e-4, min: 0, max: .005}",
    ],
    "SAC dual": [
        FULL, "controller={kind: dual, initial: .01, target: 2, step_size: .1, min: 1e-4, max: 1}"
    ],
    "AER": [
        FULL, "controller={kind: automatic_band, initial: 0, low_fraction: 1.1, "
        "high_fraction: 1.1, reference_steps: 1, step_size: 1e-2, min: 0, max: 1}",
        "entropy_controls=[{kind: difficulty_coefficient}]",
    ],
}  # fmt: skip
SETTINGS = {
    "advantage_clip": "bound: 1",
    "kl_cov": "share: .05",
    "clip_cov": "share: .05, low: -9, high: 9",
    "probability_push": "target: 1, probability: .05",
    "rollout_budget": "low: 2, high: 6",
    "reroll": "target: 9, share: 1",
    "forked_rollouts": "forks: 1, branches: 1",
    "sample_switch": "low: .1, high: .2",
    "surprise_boost": "below: 9",
    "entropy_change_mask": "deviations: 1",
    "low_probability_kl": "share: .2",
}
NEEDED = {
    "advantage_kl": ["algorithm.kl_coefficient=.05"],
    "entropy_smoothing": [FULL],
    "rollout_budget": ["task.size=8"],  # asked again from the third step on
}
ROWS = COEFFICIENTS | {
    kind: [
        f"entropy_controls=[{{kind: {kind}, {SETTINGS.get(kind, '')}}}]", *NEEDED.get(kind, [])
    ]
    for kind in CONTROLS
    if kind != "difficulty_coefficient"  # AER
}  # fmt: skip


def series(run_dir: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in (run_dir / "journal.jsonl").read_text().splitlines():
        point = json.loads(line)
        if "key" in point:
            found.setdefault(point["key"], []).append(point["value"])
    return found


@pytest.mark.parametrize("name", ROWS)
def test_ten_steps(name, shared_engine, tmp_path):
    job = Job(
        tmp_path, f"steps={STEPS}", "task.heldout=0", "checkpoint.every=0", *shared_engine,
        "trainer.tensor_parallel=1", "trainer.pipeline_parallel=1",
        "tracking.samples_every=0", "tracking.system_metrics_every_s=0", *ROWS[name],
    )  # fmt: skip
    assert job.wait() == 0, job.text
    found = series(job.run_dir)
    for key in ("reward/mean", "policy/entropy", "update/loss", "update/grad_norm"):
        assert len(found[key]) == STEPS
        assert all(map(math.isfinite, found[key])), key
    assert max(found["policy/logprob_gap"]) < 1e-3  # weights of this run, at its temperature
    coefficients = found["controller/coefficient"]
    assert (len(set(coefficients)) == 1) == (name in ("none", "constant bonus"))
    kept = {key for key in found if key.startswith(f"control/{name}/")}
    assert bool(kept) == (name in KEEP)
    assert all(len(found[key]) == STEPS and all(map(math.isfinite, found[key])) for key in kept)


KEEP = (
    "entropy_smoothing", "probability_push", "nucleus_anchor", "temperature_schedule", "reroll",
    "sample_switch", "surprise_boost", "entropy_budget",
)  # fmt: skip
