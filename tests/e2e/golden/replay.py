"""Recorded runs, repeated from their rollouts: a refactoring must not change their numbers.

``recorded/NAME/`` is the start of a run: the checkpoint from which it continues, and the rollouts
of the steps after it. ``expected.json`` has the results of the steps. All of it was written by the
code before the refactoring (commit ab89874), except ``gradient/*``: since then each update measures
its own tokens. If a change is *meant* to change numbers, record them again:
``PYTHONPATH=tests .venv/bin/python -m e2e.golden.replay``.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from e2e.engines import tiny_engine
from e2e.jobs import Job

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
STEPS = 4
SMALL = (
    f"steps={STEPS}", "task.heldout=0", "checkpoint.every=9", "checkpoint.keep=9",
    "trainer.threads_per_rank=1", "tracking.samples_every=0", "tracking.system_metrics_every_s=0",
)  # fmt: skip
CONTROLS = (
    "entropy_controls=[{kind: probability_push, target: 1, probability: .05}, "
    "{kind: clip_cov, share: .05, low: -9, high: 9}, {kind: entropy_advantage}]"
)
# seconds and bytes; what compares the trainer with the engine, in whose last bits requests differ
LEFT_OUT = ("time/", "tokens/", "memory/", "system/", "engine/", "compute/")
LEFT_OUT += ("policy/logprob_gap", "policy/kl_behaviour")


@dataclass(frozen=True)
class Case:
    """A start, and the overrides of the run that continues from it."""

    start: str  # a folder of recorded/
    overrides: tuple[str, ...]


CASES = {
    "tensor parallel": Case("plain", ("trainer.pipeline_parallel=1",)),
    "pipeline parallel": Case("plain", ("trainer.tensor_parallel=1",)),
    "controls": Case(
        "controls",
        ("trainer.tensor_parallel=1", "trainer.pipeline_parallel=1", "trainer.data_parallel=2",
         "trainer.mini_batches=2", CONTROLS),
    ),
}  # fmt: skip


def replay(case: Case, folder: Path, engine: Sequence[str]) -> dict[str, Any]:
    """Run the case on an engine (overrides that name it) and return its numbers, as in
    ``expected.json``."""
    shutil.copytree(HERE / "recorded" / case.start, folder / "run")
    job = Job(folder, *SMALL, *engine, *case.overrides, "--resume")
    assert job.wait() == 0, job.text
    return {
        "series": series(job.run_dir),
        "weights": weights(job.run_dir / "policy"),
    }


def series(run_dir: Path) -> dict[str, list[float]]:
    """{metric: its value in each step}, for the trainer's own metrics."""
    found: dict[str, list[float]] = {}
    for line in (run_dir / "journal.jsonl").read_text().splitlines():
        point = json.loads(line)
        if "key" in point and not point["key"].startswith(LEFT_OUT):
            found.setdefault(point["key"], []).append(point["value"])
    return found


def weights(folder: Path) -> dict[str, Any]:
    """A hash over every tensor, and each one's norm."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):  # each pipeline stage wrote its own
        tensors |= load_file(path)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    norms = {name: float(tensors[name].double().norm()) for name in sorted(tensors)}
    return {"sha256": digest.hexdigest(), "norms": norms}


def processor() -> dict[str, str]:
    """The properties of a CPU that determine the last bits of a sum."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {k.strip(): v.strip() for k, v in found.items()}
    return {
        "machine": platform.machine(),
        "name": " ".join(names.get(k, "") for k in ("model name", "cpu family", "model")),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Record what the present code gives."""
    expected: dict[str, Any] = {"processor": processor(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder, tiny_engine(Path(folder)) as url:
        for number, (name, case) in enumerate(CASES.items()):
            place = Path(folder, str(number))
            place.mkdir()
            expected["cases"][name] = replay(
                case, place, ("rollout.engines=0", f"rollout.urls=['{url}']")
            )
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
