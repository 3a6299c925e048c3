"""``aent train`` on one machine: starts engines and ranks, watches them, ends the run properly.

The launcher holds no model. It is the one process that a signal reaches, and the one that sees a
child die; whatever happens, it leaves no child behind and MLflow's run in its true state.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aent import model_source
from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.entropy.statistics import PAPER_DROP_FRACTION
from aent.recipe.check import run_folder
from aent.recipe.load import dump
from aent.recipe.schema import Recipe
from aent.rollout import engine
from aent.runtime.children import Child, free_port, stop_all
from aent.runtime.environment import device_kind
from aent.tracking.tracker import mark_ended

POLL_S = 0.1
STOP_GRACE_S = 5.0  # between SIGTERM and SIGKILL of what is left
LAST_WORDS_S = 10.0  # for rank 0 to end after another rank has followed its failure
LOG_LINES = 25  # of a dead child, shown
FOLLOWED_RANK_0 = "RankZeroFailed"


@dataclass
class Signals:
    """The first SIGINT or SIGTERM that reached this process, 0 before."""

    received: int = 0


@contextmanager
def caught_signals() -> Iterator[Signals]:
    """Note SIGINT and SIGTERM instead of dying of them."""
    signals = Signals()

    def note(number: int, frame: object) -> None:
        signals.received = signals.received or number

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(recipe: Recipe) -> int:
    """Run the recipe; return the exit code: 0, 1 (a child failed), 128 + the signal's number."""
    run_dir = run_folder(recipe).absolute()
    model_path = model_source.resolve(recipe.model)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    say_what_starts(recipe, run_dir, model_path)
    children: list[Child] = []
    failure: str | None = None
    with caught_signals() as signals:
        try:
            engines = start_engines(recipe, model_path, run_dir, children)
            (run_dir / "engines.json").write_text(json.dumps(engines, indent=1))
            ranks = start_ranks(recipe, model_path, run_dir)
            children += ranks
            failure = watch(children, ranks, signals)
        except Exception as error:  # the run has a folder by now: it must not look as if it went on
            failure = f"aent: {type(error).__name__}: {error}"
        finally:
            stop_all(children, STOP_GRACE_S)
        if signals.received:
            print(f"aent: stopped by {signal.Signals(signals.received).name}", file=sys.stderr)
            mark_ended(run_dir, "KILLED")
            return 128 + signals.received
    if failure is not None:
        print(failure, file=sys.stderr)
        mark_ended(run_dir, "FAILED")
        return 1
    return 0


def say_what_starts(recipe: Recipe, run_dir: Path, model_path: Path) -> None:
    """Before the silence of a start: what is being started, and where it writes."""
    trainer, rollout = recipe.trainer, recipe.rollout
    print(
        f"aent: {recipe.name}: {trainer.num_ranks} trainer ranks (tensor {trainer.tensor_parallel} "
        f"x pipeline {trainer.pipeline_parallel} x data {trainer.data_parallel}), "
        f"{rollout.engines + len(rollout.urls)} vLLM engine(s), model {model_path}\n"
        f"{say_what_controls(recipe)}\n"
        f"aent: run folder {run_dir} (logs in logs/)",
        flush=True,
    )


def say_what_controls(recipe: Recipe) -> str:
    """Two lines: which entropy is rewarded, and what becomes of its coefficient."""
    entropy, settings = recipe.entropy, ControllerSettings(**recipe.controller.model_dump())
    if entropy.measure == "full":
        which = "the entropy over the whole vocabulary"
    elif entropy.top_k is not None:
        which = f"the entropy renormalised on the {entropy.top_k} likeliest tokens"
    else:
        dropped = PAPER_DROP_FRACTION if entropy.drop_fraction is None else entropy.drop_fraction
        which = f"the entropy renormalised without the {dropped:.3g} unlikeliest of the vocabulary"
    if settings.kind == "constant" and settings.initial == 0:
        return f"aent: no entropy bonus (coefficient 0); measured: {which}"
    return (
        f"aent: entropy bonus: coefficient x {which}\n"
        f"aent: coefficient ({settings.kind}): {controllers.describe(settings)}"
    )


def start_engines(
    recipe: Recipe, model_path: Path, run_dir: Path, children: list[Child]
) -> list[dict[str, str | None]]:
    """Start the recipe's engines (each appended to ``children``).

    Returns where every engine is, somebody else's included: {"url": ..., "log": file or None}.
    """
    found: list[dict[str, str | None]] = [{"url": u, "log": None} for u in recipe.rollout.urls]
    first_gpu = recipe.trainer.num_ranks
    for index in range(recipe.rollout.engines):
        settings = engine.settings_of(recipe, model_path, run_dir, index, first_gpu)
        started = engine.start(settings)
        children.append(started.child)
        found.append({"url": started.url, "log": str(settings.log_path)})
    return found


def start_ranks(recipe: Recipe, model_path: Path, run_dir: Path) -> list[Child]:
    """Start every trainer rank on this machine, with the variables torchrun would set."""
    world = recipe.trainer.num_ranks
    threads = recipe.trainer.threads_per_rank or max(1, (os.cpu_count() or 1) // world)
    shared = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "HF_HUB_OFFLINE": "1",
        "VLLM_PLUGINS": "none",  # nemo-toolkit registers one that complains
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device_kind() == "cpu":
        shared |= {
            "OMP_NUM_THREADS": str(threads),
            # several ranks share the cores: a waiting thread pool must not keep them busy
            "OMP_WAIT_POLICY": "PASSIVE",
            # torch maps every buffer above 32 MB anew; huge pages save most of the page faults
            "THP_MEM_ALLOC_ENABLE": "1",
        }
    argv = [sys.executable, "-m", "aent.worker", str(run_dir), str(model_path)]
    return [
        Child.start(
            f"trainer rank {rank}",
            argv,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            log_path=run_dir / "logs" / f"rank{rank}.log",
            inherit_stdout=rank == 0,  # the progress display
        )
        for rank in range(world)
    ]


def watch(children: list[Child], ranks: list[Child], signals: Signals) -> str | None:
    """Wait for every rank to end well; return what to tell when one did not, or an engine died.

    Returns None on a signal too.
    """
    while not signals.received:
        dead = [c for c in children if c.poll() is not None and (c.poll() != 0 or c not in ranks)]
        if dead:
            return first_failure(dead, ranks)
        if all(rank.poll() == 0 for rank in ranks):
            return None
        time.sleep(POLL_S)
    return None


def first_failure(dead: list[Child], ranks: list[Child]) -> str:
    """The last lines of the child that failed first, not of those that only followed it.

    A child killed by a signal comes before one that ended by itself; a rank that only says that
    rank 0 failed gives rank 0 the time to say why.
    """
    child = min(dead, key=lambda c: (c.poll() or 0) >= 0)
    if FOLLOWED_RANK_0 in child.tail(5):
        deadline = time.monotonic() + LAST_WORDS_S
        while ranks[0].poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        child = ranks[0]
    return (
        f"aent: {child.name} {child.describe_exit()}; the last lines of {child.log_path}:\n"
        + child.tail(LOG_LINES)
    )
