"""What sampling ahead saves of a step: a real engine and a real trainer, on a core each.

    .venv/bin/python benchmarks/ahead.py [--recipe FILE] [--steps 8] [KEY=VALUE ...]

Three runs, one after the other: serial, both on both cores; serial, the engine pinned to one core
and the trainer (one rank) to another; ahead by a step (``rollout.max_staleness: 1``), pinned too.
Means of a step, without the first two and the last, for which nothing is sampled ahead. "bound" is
max(trainer's work, engine's work) of the same run: what a step would take if nobody waited. The
last line has the step of the third run beside the bound and the step of the second. Before the row
of a serial run, ``cluster_simulation.check`` compares its model of the engine with that run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from aent.inference import engine, registry
from aent.models.model_source import resolve
from aent.recipe.load import load
from aent.tracking import journal
from cluster_simulation import check

LEFT_OUT = 2  # steps: the first is scored, and the first two have to fill the buffer
READY_S = 900.0
# one rank; 32 responses of 24 tokens: both sides take about as long
SMALL = (
    "trainer.pipeline_parallel=1", "trainer.tensor_parallel=1", "task.heldout=0",
    "rollout.prompts_per_step=4", "rollout.max_response_tokens=24",
    "algorithm.importance=truncated_token",
)  # fmt: skip
WAYS = {  # max_staleness, and whether pinned
    "serial": (0, False),
    "serial, pinned": (0, True),
    "ahead, pinned": (1, True),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cpu/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or given.steps < LEFT_OUT + 2:
        parser.error(f"it needs two cores and --steps of at least {LEFT_OUT + 2}")
    print(f"load {os.getloadavg()[0]:.1f}; seconds of a step:")
    print("                  step  score+train  sync  engine's work  bound  step/bound", flush=True)
    steps, bounds = {}, {}
    for way, (staleness, pinned) in WAYS.items():
        sides = ({cores[0]}, {cores[1]}) if pinned else (set(cores), set(cores))
        changes = [*SMALL, *given.overrides, f"steps={given.steps}"]
        with tempfile.TemporaryDirectory() as folder:
            changes += [f"rollout.max_staleness={staleness}"]
            means = run(given.recipe, changes, Path(folder), *sides)
            if staleness == 0:
                check(Path(folder) / "run")
        train = means.get("time/score", 0.0) + means["time/train"]
        bound = max(train + means["time/sync"], means["time/engines_busy"])
        steps[way], bounds[way] = means["time/total"], bound
        print(
            f"{way:16}  {means['time/total']:4.1f}  {train:11.1f}  {means['time/sync']:4.1f}  "
            f"{means['time/engines_busy']:13.1f}  {bound:5.1f}  {means['time/total'] / bound:10.2f}"
            f"   (load {os.getloadavg()[0]:.1f})",
            flush=True,
        )
    step = steps["ahead, pinned"]
    print(
        f"ahead, pinned: {step / bounds['ahead, pinned']:.2f} of its own bound, "
        f"{step / bounds['serial, pinned']:.2f} of the serial run's bound, "
        f"{step / steps['serial, pinned']:.2f} of the serial run's step"
    )


def run(
    recipe: Path, changes: list[str], folder: Path, engines: set[int], ranks: set[int]
) -> dict[str, float]:
    """Means over a run's steps, by metric; engine and trainer on these cores."""
    asked = load(recipe, changes)
    token = registry.make_token(folder)
    settings = replace(
        engine.settings_of(asked, resolve(asked.model), folder, 0, 0),
        log_path=folder / "engine.log",
    )
    everywhere = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, engines)  # children are where their parent was when it made them
        started = engine.start(settings)
        os.sched_setaffinity(0, ranks)
        try:
            started.wait_ready(READY_S)
            outside = [f"rollout.urls=[{started.url}]", f"rollout.token_file={token}"]
            argv = [sys.executable, "-m", "aent", "train", str(recipe), *changes, *outside]
            argv += ["rollout.engines=0", f"run_dir={folder / 'run'}"]
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        finally:
            started.stop()
    finally:
        os.sched_setaffinity(0, everywhere)
    if done.returncode != 0:
        sys.exit(done.stdout)
    values: dict[str, list[float]] = {}
    for point in journal.read(folder / "run" / journal.JOURNAL_FILE):
        if point.key.startswith("time/") and LEFT_OUT <= point.step < asked.steps - 1:
            values.setdefault(point.key, []).append(point.value)
    return {key: fmean(found) for key, found in values.items()}


if __name__ == "__main__":
    main()
