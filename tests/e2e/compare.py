"""Compares two runs that must be the same, and a run with one that repeats it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from e2e.jobs import Job

# what the trainer computes. The engine's own log-probs (policy/logprob_gap, policy/kl_behaviour)
# depend in their last bits on which requests share a batch, and enter no loss here.
EXACT = (
    "reward/mean", "response/length_mean", "policy/entropy", "policy/clamped_entropy",
    "policy/kept_mass", "policy/clip_fraction", "update/loss", "update/policy_loss",
    "update/grad_norm", "update/lr", "controller/coefficient", "controller/next_coefficient",
    "evaluation/accuracy",
)  # fmt: skip


def series(run_dir: Path) -> dict[str, dict[int, set[float]]]:
    """{metric: {step: every value that the journal has}}, what entropy controls keep included."""
    found: dict[str, dict[int, set[float]]] = {key: {} for key in EXACT}
    for line in (run_dir / "journal.jsonl").read_text().splitlines():
        point = json.loads(line)
        key = point.get("key", "")  # none: a status or a file
        if key in EXACT or key.startswith("control/"):
            found.setdefault(key, {}).setdefault(point["step"], set()).add(point["value"])
    return found


def assert_same_run(
    run_dir: Path, reference: Path, steps: int, begins_evaluated: bool = False
) -> None:
    """Coefficients, losses, rewards and final weights are equal to the last bit.

    begins_evaluated: the run began with a checkpoint written after the first evaluation."""
    got, want = series(run_dir), series(reference)
    if begins_evaluated:
        del want["evaluation/accuracy"][0]
    assert got.keys() == want.keys()
    for key in want:
        assert got[key] == want[key], key
        assert len(got[key]) == steps or key == "evaluation/accuracy"
    for log in (run_dir / "logs").glob("rank0.log*"):  # the tracker's warning of a repeated step
        assert "was executed again" not in log.read_text()
    weights = [
        {file.name: file.read_bytes() for file in (d / "policy").glob("*.safetensors")}
        for d in (run_dir, reference)
    ]
    assert weights[0] == weights[1] != {}


def replay(folder: Path, name: str, *overrides: str) -> Path:
    """The run of ``folder`` once more, in one, from its first checkpoint and by its rollouts, of
    which none may be missing; the new run's folder."""
    parts, again = folder / "run", folder / name
    for kept in ("rollouts", "checkpoints/step_000000"):
        shutil.copytree(parts / kept, again / "run" / kept)
    shutil.copy(parts / "recipe.yaml", again / "run")
    job = Job(again, *overrides, "resume=auto")
    try:
        assert job.wait() == 0, job.text
    finally:
        job.process.kill()
    return job.run_dir
