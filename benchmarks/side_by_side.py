"""aent's step beside TRL's, step by step in turn: 32 samples (4 prompts x 8) of 32 new tokens,
SmolLM2-135M-Instruct in float32, on two cores (one process of two threads there; here two
data-parallel ranks and a vLLM server), AEnt's bonus on in ours.

    .venv/bin/python benchmarks/side_by_side.py TRL_PYTHON [--turns 6]

TRL_PYTHON: the python of an environment with torch 2.13.0 (CPU), trl 1.16.0, transformers 5.19.0.
Both are started, one after the other, and stopped (SIGSTOP) after their first step. Then each does
one step while the other is stopped, A B A B, so that a change of the machine's load affects both.
For each step: wall time, and the processor time of all processes of that side.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import psutil

from aent.models.model_source import resolve
from aent.recipe.schema import ModelSection
from aent.tracking import journal

START_S, STEP_S, END_S = 1200.0, 900.0, 120.0
POLL_S = 0.02
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Side:
    """A training run that reports how many steps it has done."""

    name: str
    tokens: Callable[[], list[float]]  # of each step that has ended, prompts included
    argv: list[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)  # besides ours
    wall_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Return after its first step, with everything stopped."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **self.env},
            )
        self._wait_for(1, START_S)
        self._signal(signal.SIGSTOP)

    def turn(self) -> None:
        """Continue for one step."""
        before, begin = self._processor_s(), time.perf_counter()
        steps = len(self.tokens()) + 1
        self._signal(signal.SIGCONT)
        self._wait_for(steps, STEP_S)
        self.wall_s.append(time.perf_counter() - begin)
        self._signal(signal.SIGSTOP)
        self.processor_s.append(self._processor_s() - before)

    def end(self) -> None:
        if not hasattr(self, "process"):
            return
        everyone = self._everyone()
        self._signal(signal.SIGCONT)
        self.process.terminate()
        _, left = psutil.wait_procs(everyone, END_S)
        for process in left:
            process.kill()

    def _wait_for(self, steps: int, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while len(self.tokens()) < steps:
            if self.process.poll() is not None or time.monotonic() > deadline:
                why = f"has not done step {steps} in {patience_s:.0f} s, or has ended"
                sys.exit(f"{self.name} {why}:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(POLL_S)

    def _everyone(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def _signal(self, number: signal.Signals) -> None:
        for process in self._everyone():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def _processor_s(self) -> float:
        total = 0.0
        for process in self._everyone():
            try:
                total += sum(process.cpu_times()[:4])  # its ended children's too
            except psutil.NoSuchProcess:
                continue
        return total


def trl_side(python: str, turns: int, folder: Path) -> Side:
    steps = folder / "trl.jsonl"
    model = resolve(ModelSection(bundled="smollm2-135m-instruct"))
    argv = [python, "benchmarks/trl_step.py", str(model), str(turns + 2), str(steps)]

    def tokens() -> list[float]:
        return [float(line) for line in _whole_lines(steps)]

    env = {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}  # ours sets its threads itself
    return Side("TRL", tokens, argv, folder / "trl.log", env)


def our_side(turns: int, folder: Path) -> Side:
    # questions over which this model rambles: nearly every response has its 32 tokens, as TRL's
    argv = [sys.executable, "-m", "aent", "train", "recipes/cpu/quickstart.yaml"]
    argv += [f"run_dir={folder / 'run'}", f"steps={turns + 2}", "task.name=count_primes"]
    argv += ["task.config={}", "task.graders=[{kind: reasoning_gym}]", "task.heldout=0"]
    argv += ["rollout.prompts_per_step=4", "rollout.max_response_tokens=32"]
    # two replicas: unlike two pipeline stages, neither waits for micro-batches of the other
    argv += ["trainer.pipeline_parallel=1", "trainer.data_parallel=2"]
    argv += ["trainer.micro_batch_tokens=400"]

    def tokens() -> list[float]:
        points = map(json.loads, _whole_lines(folder / "run" / journal.JOURNAL_FILE))
        return [point["value"] for point in points if point.get("key") == "tokens/total"]

    return Side("aent", tokens, argv, folder / "aent.log")


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(True) if line.endswith("\n")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trl_python")
    parser.add_argument("--turns", type=int, default=6)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides = [
            trl_side(given.trl_python, given.turns, folder),
            our_side(given.turns, folder),
        ]
        try:
            for side in sides:
                side.start()
            for _ in range(given.turns):
                for side in sides:
                    side.turn()
                    load = os.getloadavg()[0]
                    print(
                        f"{side.name:5} {side.wall_s[-1]:6.1f} s, processor "
                        f"{side.processor_s[-1]:6.1f} s (load {load:.1f})",
                        flush=True,
                    )
            theirs, ours = sides
            for side in sides:
                tokens = fmean(side.tokens()[1:])
                print(
                    f"{side.name:5} mean of {given.turns} steps: {fmean(side.wall_s):.1f} s, "
                    f"processor {fmean(side.processor_s):.1f} s, {tokens:.0f} tokens"
                )
            wall = sum(ours.wall_s) / sum(theirs.wall_s)
            processor = sum(ours.processor_s) / sum(theirs.processor_s)
            print(f"aent / TRL: {wall:.2f} in wall time, {processor:.2f} in processor time")
        finally:
            for side in sides:
                side.end()


if __name__ == "__main__":
    main()
