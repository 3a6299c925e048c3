"""What a step takes on 8 to 512 GPUs: serial, one step off, and in flight.

    .venv/bin/python benchmarks/cluster_simulation.py [--model Qwen2.5-7B-Instruct] [--run RUN_DIR]
    .venv/bin/python benchmarks/cluster_simulation.py --check RUN_DIR

A simulation, not a measurement: engines decode in batches whose cost follows from the GPU's data
sheet, the trainer computes at a given MFU, and events (a response ends, an update, a pause) follow
one another. Lengths are those that RUN_DIR recorded (``samples/``), stretched so that the longest
is ``--longest``, or lognormal, cut there. Not counted: the prompts' forward pass, grading, and the
cost of an update for the engines' caches. An engine counts as busy while it has one request.

``--check`` fits the engine's two constants to every other step of a real run, and compares their
prediction for the other steps with the measurement.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
from scipy.optimize import nnls

from aent.models.config_json import read
from aent.models.decoder import ModelFacts
from aent.models.flops import TRAINING, ForwardFlops
from aent.models.published import PUBLISHED
from simulated_engines import Decoding, Engine, Machine

GPUS = (8, 16, 32, 64, 128, 256, 512)
MODES = ("serial", "one step off", "in flight")
SHARES = tuple(n / 8 for n in range(1, 8))  # of the GPUs, for sampling; the fastest is used
WARM, LAST = 2, 1  # steps at the beginning and at the end that are not counted


@dataclass(frozen=True)
class Outcome:
    """Means over the steps that are counted."""

    step_s: float
    engines_idle: float  # shares
    trainer_idle: float


def simulate(
    mode: str,
    steps: Sequence[Sequence[tuple[int, int]]],
    engines: list[Engine],
    train_s: Sequence[float],
    sync_s: float,
) -> Outcome:
    """Run all steps.

    Args:
        mode: ``serial``: version t samples step t. ``one step off``: step t is sampled while t - 1
            is trained on; an update waits until the sampling ends. ``in flight``: version t - 1 or
            t samples it, as soon as there is one; an update interrupts.
        steps: of each, (prompt, response) tokens of its responses.
        train_s: seconds of each step's scoring and updates.
    """
    ahead = 0 if mode == "serial" else 1
    left = [len(step) for step in steps]
    admitted, version, now = 0, 0, 0.0
    trained_at = math.inf  # when the training on the present step ends
    busy_before, began = 0.0, 0.0
    due = [math.inf] * len(engines)  # when each engine's next response ends
    coming: list[tuple[float, int]] = []  # the same, soonest first, including outdated ones

    def go_on(place: int, paused: bool = False) -> None:
        """Bring one engine up to ``now``."""
        for step in engines[place].advance(now, paused):
            left[step] -= 1
        due[place] = engines[place].next_end()
        heapq.heappush(coming, (due[place], place))

    def may_begin(step: int) -> bool:
        whole = mode != "one step off" or step == 0 or left[step - 1] == 0
        return step < len(steps) and step <= version + ahead and whole

    while version < len(steps) - LAST:
        while may_begin(admitted):
            for place in range(len(engines)):
                of_engine = steps[admitted][place :: len(engines)]
                engines[place].waiting.extend((admitted, *lengths) for lengths in of_engine)
                go_on(place)
            admitted += 1
        if trained_at == math.inf and left[version] == 0:
            trained_at = now + train_s[version]
        while coming[0][0] != due[coming[0][1]]:
            heapq.heappop(coming)
        soonest, place = coming[0]
        waits = mode == "one step off" and soonest < math.inf  # for what is being sampled
        update = math.inf if waits else max(trained_at, now)
        if soonest <= update:
            now = soonest
            heapq.heappop(coming)
            go_on(place)
            continue
        now = update
        for place in range(len(engines)):
            go_on(place)
        now += sync_s
        for place in range(len(engines)):
            go_on(place, paused=True)
        version, trained_at = version + 1, math.inf
        if version == WARM:
            began, busy_before = now, sum(engine.busy_s for engine in engines)
    whole = now - began
    busy = sum(e.busy_s for e in engines) - busy_before
    counted = len(steps) - LAST - WARM
    worked = sum(train_s[WARM:-LAST]) + counted * sync_s
    idle = max(0.0, 1 - worked / whole)
    return Outcome(whole / counted, 1 - busy / len(engines) / whole, idle)


def best(
    mode: str,
    facts: ModelFacts,
    steps: Sequence[Sequence[tuple[int, int]]],
    gpus: int,
    options: argparse.Namespace,
) -> tuple[float, Outcome]:
    """(share of the GPUs that sample, outcome) of the fastest division."""
    machine, found = Machine(mfu=options.mfu), []
    of = ForwardFlops.of(facts)
    flops = [sum(of.of_unit(p, [r]) for p, r in step) for step in steps]
    sync_s = machine.probe_s + 2 * facts.parameters / machine.link
    for share in SHARES:
        sampling = int(gpus * share) // options.engine_gpus * options.engine_gpus
        if not sampling:
            continue
        training = (gpus - sampling) * machine.flops * machine.mfu
        passes = TRAINING + 1  # scored once: several mini-batches
        decoding = Decoding.of(facts, options.engine_gpus, machine)
        engines = [
            Engine(decoding, options.concurrency) for _ in range(sampling // options.engine_gpus)
        ]
        train_s = [passes * one / training for one in flops]
        found.append((share, simulate(mode, steps, engines, train_s, sync_s)))
    return min(found, key=lambda each: each[1].step_s)


def recorded_lengths(run_dir: Path) -> list[list[int]]:
    """Response tokens of every table of samples, in order; ``MAX_ROWS`` of a step at most."""
    found = []
    for path in sorted(run_dir.glob("samples/step_*.json")):
        table = json.loads(path.read_text())
        place = table["columns"].index("tokens")
        found.append([row[place] for row in table["data"]])
    if not found:
        raise SystemExit(f"{run_dir} has no samples/step_*.json (tracking.samples_every)")
    return found


def draw_steps(options: argparse.Namespace) -> list[list[tuple[int, int]]]:
    generator = random.Random(options.seed)
    pool: list[int] = []
    if options.run is not None:
        lengths = [n for step in recorded_lengths(options.run) for n in step]
        pool = [max(1, round(n * options.longest / max(lengths))) for n in lengths]

    def length() -> int:
        if pool:
            return generator.choice(pool)
        drawn = generator.lognormvariate(math.log(options.median), options.sigma)
        return max(1, min(options.longest, round(drawn)))

    return [
        [(options.prompt, length()) for _ in range(options.responses)]
        for _ in range(options.steps + WARM + LAST)
    ]


def check(run_dir: Path) -> None:
    """All of a step's requests begin at once if ``rollout.concurrency`` allows it: iteration i
    has those with i tokens or more, so sampling takes fixed x longest + each x all tokens."""
    points = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    seconds = {
        name: {p["step"]: p["value"] for p in points if p.get("key") == f"time/{name}"}
        for name in ("sample", "train", "sync", "total")
    }
    lengths = recorded_lengths(run_dir)
    steps = [s for s in range(1, len(lengths)) if s in seconds["sample"]]  # the first warms up
    rows = np.array([[max(lengths[s]), sum(lengths[s])] for s in steps], dtype=float)
    took = np.array([seconds["sample"][s] for s in steps])
    fit, rest = slice(0, None, 2), slice(1, None, 2)
    constants = nnls(rows[fit], took[fit])[0]  # neither is below 0
    predicted = rows[rest] @ constants
    errors = np.abs(predicted - took[rest]) / took[rest]
    other = [seconds[n] for n in ("train", "sync")]
    serial = [p + sum(o[s] for o in other) for p, s in zip(predicted, steps[1::2])]
    measured = [seconds["sample"][s] + sum(o[s] for o in other) for s in steps[1::2]]
    fixed, each = constants
    print(f"an iteration takes {fixed:.3f} s + {each:.4f} s a sequence, by {len(rows[fit])} steps")
    print(
        f"of the {len(errors)} others: sampling {fmean(predicted):.2f} s predicted, "
        f"{fmean(took[rest]):.2f} s measured, median error {median(errors):.1%}; a step "
        f"{fmean(serial):.2f} s predicted, {fmean(measured):.2f} s measured"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", type=Path, help="a run's folder")
    parser.add_argument("--run", type=Path, help="a run's folder: its lengths")
    parser.add_argument("--model", default="Qwen2.5-7B-Instruct", choices=sorted(PUBLISHED))
    parser.add_argument("--responses", type=int, default=4096, help="of a step")
    parser.add_argument("--prompt", type=int, default=200, help="tokens")
    parser.add_argument("--median", type=float, default=1500.0, help="tokens, lognormal")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the logarithm")
    parser.add_argument("--longest", type=int, default=7168, help="tokens")
    parser.add_argument("--engine-gpus", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=256, help="requests of an engine")
    parser.add_argument("--mfu", type=float, default=Machine.mfu, help="of the trainer")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    options = parser.parse_args()
    if options.check is not None:
        return check(options.check)
    facts = read({"architectures": None, **PUBLISHED[options.model]}, options.model)
    steps = draw_steps(options)
    tokens = fmean(r for step in steps for _, r in step)
    print(f"{options.model}, {options.responses} responses of {tokens:.0f} tokens a step\n")
    print("| GPUs | " + " | ".join(f"{m}, s (idle: engines, trainer)" for m in MODES) + " |")
    print("|---|" + "---|" * len(MODES))
    for gpus in options.gpus:
        cells = []
        for mode in MODES:
            share, outcome = best(mode, facts, steps, gpus, options)
            cells.append(
                f"{outcome.step_s:.0f} ({outcome.engines_idle:.0%}, {outcome.trainer_idle:.0%}; "
                f"{gpus * share:.0f} sample)"
            )
        print(f"| {gpus} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
