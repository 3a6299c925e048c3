"""``aent train`` on one machine: starts engines and ranks, watches them, and ends the run.

The launcher holds no model. It receives signals and notices when a child dies. Whatever happens, it
leaves no child behind, and the run's status in MLflow is right.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aent.checkpoint.folders import CheckpointError
from aent.inference import engine
from aent.inference.http import EngineError
from aent.inference.keeper import Keeper
from aent.inference.shared import SharedEngines
from aent.launch import starts
from aent.launch.start import prepare, rank_environment
from aent.layout.nodes import first_engine_gpu
from aent.layout.parallel import ParallelLayout
from aent.recipe.folder import run_folder
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime import failures, heartbeats
from aent.runtime.children import Child, stop_all
from aent.runtime.log import log, logged
from aent.runtime.network import held_port
from aent.runtime.rank import SLURM
from aent.runtime.signals import CHECKPOINTED, STACKS, STOP, held
from aent.tracking import sqlite
from aent.tracking.address import AddressError
from aent.tracking.ended import mark_ended
from aent.tracking.sqlite import Making, StoreError

POLL_S = 0.1
STOP_GRACE_S = 5.0  # seconds between SIGTERM and SIGKILL of remaining children
ENDED_S = 20.0  # seconds to tell MLflow of a signal: its sender waits 30 s at most
LAST_WORDS_S = 10.0  # for rank 0 to write its reason, if another rank failed because of it
LOG_LINES = 25  # lines of a dead child's log that are shown
SILENCE_S = 120.0  # seconds without a sign of life after which a rank counts as hanging
STACKS_S = 3.0  # seconds for the ranks to write their stacks


@dataclass
class Signals:
    """The signals that this process received."""

    received: int = 0  # the first SIGINT, SIGTERM or SIGHUP; 0 before
    stop: bool = False  # SIGUSR1 requests a checkpoint and a stop (runtime.signals)


@contextmanager
def caught_signals() -> Iterator[Signals]:
    """Record SIGINT, SIGTERM, SIGHUP (of a terminal that is closed; not under nohup) and SIGUSR1
    instead of ending because of them."""
    signals = Signals()
    caught = [signal.SIGINT, signal.SIGTERM, STOP]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        caught.append(signal.SIGHUP)

    def note(number: int, frame: object) -> None:
        if number == STOP:
            signals.stop = True
        else:
            signals.received = signals.received or number

    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(recipe: Recipe, shared: SharedEngines | None = None) -> int:
    """Run the recipe; return the exit code: 0, 1 (a child failed), 2 (it cannot be resumed),
    ``CHECKPOINTED`` (stopped by SIGUSR1, to be resumed), 128 + the signal's number.

    With ``shared`` the run takes over the engines kept there, and keeps its own there if it
    succeeds.
    """
    with logged("launcher", starts.attempt(run_folder(recipe)) + 1):
        try:
            run_dir, model_path = prepare(recipe)
        except (CheckpointError, StoreError, AddressError, OSError) as error:
            for line in redacted(str(error)).splitlines():
                log.error(f"aent: {line}")
            return 2
        return _run(recipe, run_dir, model_path, shared)


def _run(recipe: Recipe, run_dir: Path, model_path: Path, shared: SharedEngines | None) -> int:
    """Start, watch and end the run's processes; return its exit code."""
    keepers: list[Keeper] = []
    ranks: list[Child] = []
    store: Making | None = None
    failure: str | None = None
    with caught_signals() as signals:
        try:
            if (path := sqlite.file_of_run(recipe, run_dir)) is not None:
                store = Making.begin(path, run_dir / "logs" / "mlflow-store.log")
            for index in range(recipe.rollout.engines):
                keepers.append(start_engine(recipe, model_path, run_dir, index, shared))
            while store is not None and not signals.received and not store.done():
                time.sleep(POLL_S)  # while the engines start
            with held_port() as port:
                started = start_ranks(recipe, model_path, run_dir, port.getsockname()[1])
                with held():
                    for rank in () if signals.received else started:
                        ranks.append(rank)  # at once: it is ended if the next does not start
                watch = heartbeats.Watch(run_dir, SILENCE_S)
                failure = look_after(keepers, ranks, signals, watch, recipe.rollout.spare_engines)
        except Exception as error:  # the run has a folder by now: its status must not stay RUNNING
            failure = f"aent: {type(error).__name__}: {error}"
        finished = bool(ranks) and all(rank.poll() == 0 for rank in ranks)
        if shared is not None and finished and failure is None:
            shared.left |= {keeper.index: keeper for keeper in keepers}
            keepers = []
        try:
            others = [k.engine.child for k in keepers] + (
                [store.child] if store is not None and store.child.poll() is None else []
            )
            stop_all([*ranks, *others], STOP_GRACE_S)
        except TimeoutError as error:  # MLflow must still be told of the end
            failure = f"{failure}\naent: {error}" if failure else f"aent: {error}"
        return ended(run_dir, ranks, signals, failure)


def ended(run_dir: Path, ranks: list[Child], signals: Signals, failure: str | None) -> int:
    """Report how the run ended, to MLflow too if no rank could; return the exit code."""
    if failure is not None:
        log.error(redacted(failure))
        starts.end(run_dir, redacted(failure))
    if signals.received:
        told = f"stopped by {signal.Signals(signals.received).name}"
        log.warning(f"aent: {told}")
        starts.end(run_dir, told)
        mark_ended(run_dir, "KILLED", ENDED_S)
        return 128 + signals.received
    if failure is not None:
        mark_ended(run_dir, "FAILED")
        return 1
    if all(rank.poll() == CHECKPOINTED for rank in ranks):
        told = "stopped by SIGUSR1, with a checkpoint"
        log.warning(f"aent: {told}: --resume continues it")
        starts.end(run_dir, told)
        return CHECKPOINTED
    starts.end(run_dir, "finished")
    return 0


def start_engine(
    recipe: Recipe, model_path: Path, run_dir: Path, index: int, shared: SharedEngines | None
) -> Keeper:
    """Start engine ``index`` of the recipe, on GPUs after the ranks' or on theirs, or take over a
    shared one."""
    first_gpu = first_engine_gpu(recipe, ParallelLayout.of(recipe.trainer).num_ranks)
    first_gpu += index * recipe.rollout.engine.tensor_parallel
    settings = engine.settings_of(recipe, model_path, run_dir, index, first_gpu)
    if shared is not None:
        return shared.engine(recipe, run_dir, index, settings)
    return Keeper.start(recipe, run_dir, index, settings)


def start_ranks(recipe: Recipe, model_path: Path, run_dir: Path, port: int) -> Iterator[Child]:
    """Start one trainer rank after the other, with the variables torchrun would set; rank 0 listens
    on the port."""
    world = ParallelLayout.of(recipe.trainer).num_ranks
    shared = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **rank_environment(recipe, world),
    }
    # set in a shell inside a Slurm job: its task number is not a rank's number
    outside = {name: value for name, value in os.environ.items() if name not in SLURM.values()}
    argv = [sys.executable, "-m", "aent.launch.rank", str(run_dir), str(model_path)]
    for rank in range(world):
        yield Child.start(
            f"trainer rank {rank}",
            argv,
            env={**outside, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            log_path=run_dir / "logs" / f"rank{rank}.log",
            inherit_stdout=rank == 0,  # the progress display
        )


def look_after(
    keepers: list[Keeper],
    ranks: list[Child],
    signals: Signals,
    watch: heartbeats.Watch,
    spare_engines: int,
) -> str | None:
    """Watch engines and ranks until every rank has succeeded. Return the error to report if a rank
    fails or hangs, or if too few engines are left.

    An engine that cannot be restarted is removed from ``keepers``. Returns None on a signal too;
    SIGUSR1 is passed on to the ranks.
    """
    asked, next_look = False, 0.0
    while not signals.received:
        if signals.stop and not asked:
            asked = True
            send_all(ranks, STOP)
        for keeper in list(keepers):
            try:
                keeper.look()
            except EngineError as error:
                if spare_engines == 0 or not keeper.has_served:
                    return f"aent: {error}"
                log.warning(f"aent: engine {keeper.index} is not started again: {error}")
                keepers.remove(keeper)
        dead = [r for r in ranks if r.poll() not in (None, 0, CHECKPOINTED)]
        if dead:
            return first_failure(dead, ranks, watch.run_dir)
        if all(rank.poll() is not None for rank in ranks):
            return None
        if time.monotonic() > next_look:
            next_look = time.monotonic() + heartbeats.LOOK_S
            if (told := watch.look()) is not None:
                send_all(ranks, STACKS)
                time.sleep(STACKS_S)
                return f"aent: {told}; every rank's stack is in {ranks[0].log_path.parent}"
        time.sleep(POLL_S)
    return None


def send_all(ranks: list[Child], number: signal.Signals) -> None:
    for rank in ranks:
        rank.process.send_signal(number)  # does nothing if the rank has ended


def first_failure(dead: list[Child], ranks: list[Child], run_dir: Path) -> str:
    """Why the first rank failed: the reason that it wrote (``runtime.failures``), if there is one.

    A rank killed by a signal wrote none, and is named too: its end may be the cause (out of
    memory), or a result of another rank's failure (NCCL and gloo abort). If no rank was killed, and
    the others only failed after rank 0, wait a little for rank 0 to write its reason.
    """
    killed = next((child for child in dead if (child.poll() or 0) < 0), None)
    if killed is None:
        deadline = time.monotonic() + LAST_WORDS_S
        while failures.only_followed(run_dir) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    told = failures.first(run_dir)
    if killed is not None and told and not failures.only_followed(run_dir):
        return f"{told}\naent: {killed.name} {killed.describe_exit()} ({killed.log_path})"
    if killed is None and told:
        return told
    child = killed or dead[0]
    return (
        f"aent: {child.name} {child.describe_exit()}; the last lines of {child.log_path}:\n"
        + child.tail(LOG_LINES)
    )
