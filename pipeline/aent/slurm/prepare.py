"""A job's first step, on one node: prepares the run's folder and the batch script's variables.

``python -m aent.slurm.prepare RUN_DIR --nodes N --gpus-per-node G [--engine-nodes M]
[--engine-gpus-per-node G] [--cpus N] [--engine-cpus N] [--max-requeues N] [--sweep DIR] RECIPE
[key=value ...]`` checks everything and writes ``RUN_DIR/job.env``. A run that has begun in RUN_DIR
is resumed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path

from aent.checkpoint import folders, lead
from aent.checkpoint.folders import CheckpointError
from aent.checks.recipe import check, doubts
from aent.estimate.disk import disk_bytes
from aent.launch import starts
from aent.launch.start import prepare, rank_environment
from aent.layout.nodes import Layout, idle_gpus, layout
from aent.layout.parallel import ParallelLayout
from aent.recipe.folder import run_folder
from aent.recipe.load import RecipeError, load
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.runtime.files import NoLocksError, locked, write_whole
from aent.runtime.log import log, logged
from aent.slurm import hashes
from aent.slurm.sweep import SweepError, parent_run
from aent.tracking import sqlite
from aent.tracking.address import AddressError
from aent.tracking.sqlite import StoreError

JOB_FILE = "job.env"
SPARE_GIB = 1.0  # space for logs, samples and the journal, beside checkpoints
# seconds for another job's preparation in the same folder (it may make a bundled model)
LOCK_S = 600.0


def main(arguments: list[str]) -> int:
    """Return the exit code: 0, or 2 with one sentence per fault on stderr."""
    parser = argparse.ArgumentParser(prog="aent.slurm.prepare")
    parser.add_argument("run_dir")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, required=True)
    parser.add_argument("--engine-nodes", type=int, default=0)
    parser.add_argument("--engine-gpus-per-node", type=int)
    parser.add_argument("--cpus", type=int, help="that the job has on each node with ranks")
    parser.add_argument("--engine-cpus", type=int, help="that it has on each node with engines")
    parser.add_argument("--max-requeues", type=int, default=0)
    parser.add_argument("--sweep", type=Path, help="folder of the sweep that the run is part of")
    parser.add_argument("--alive", default="", help="ids of the user's jobs, this one included")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args(arguments)
    try:
        own = [f"run_dir={json.dumps(given.run_dir, ensure_ascii=False)}", "resume=auto"]
        recipe = load(data_path(given.recipe), [*given.overrides, *own])
        faults = check(recipe)
        engines = (given.engine_nodes, given.engine_gpus_per_node)
        place = layout(recipe, given.nodes, given.gpus_per_node, *engines)
        faults += few_cpus(place, given.cpus, given.engine_cpus)
        idle = idle_gpus(recipe, given.nodes, given.gpus_per_node, *engines)
        if given.sweep is not None and not faults:
            tracking = {"parent_run_id": parent_run(given.sweep, recipe)}
            update = {"tracking": recipe.tracking.model_copy(update=tracking)}
            recipe = recipe.model_copy(update=update)
    except (RecipeError, ValueError, SweepError) as error:
        faults = str(error).splitlines()
    if faults:
        for fault in faults:
            log.error(f"aent: {redacted(fault)}")
        return 2
    for said in [*filter(None, [idle]), *doubts(recipe)]:
        log.warning(f"aent: {said}")
    try:
        with only_job(run_folder(recipe), given.alive.split()):
            if finished(recipe):
                write_whole(run_folder(recipe) / JOB_FILE, "FINISHED=1\n")
                return 0
            digests = hashes.take(run_folder(recipe).absolute())
            run_dir, model_path = prepare(recipe, os.environ.get("SLURM_JOB_ID"), digests)
            if (store := sqlite.file_of_run(recipe, run_dir)) is not None:
                sqlite.make_ready_apart(store)
            count_start(run_dir, given.max_requeues)
            (run_dir / "logs").mkdir(exist_ok=True)
            say_how_early(recipe, run_dir)
            written = [each for each in folders.found(run_dir) if not each.ending]
            disk = disk_bytes(recipe, len(written))
            text = job_environment(recipe, run_dir, place, model_path, disk)
            write_whole(run_dir / JOB_FILE, text)
    except (BusyError, CheckpointError, StoreError, AddressError, OSError) as error:
        for line in redacted(str(error)).splitlines():
            log.error(f"aent: {line}")
        return 2
    return 0


def few_cpus(place: Layout, cpus: int | None, engine_cpus: int | None) -> Iterator[str]:
    """One sentence if Slurm could not start a node's tasks: each needs a CPU that the job has.

    Engines and ranks may have the same CPUs, because their steps overlap. None: not known.
    """
    for tasks, what, given in (
        (place.ranks_per_node, "trainer rank(s)", cpus),
        (place.engines_per_node, "engine(s)", engine_cpus),
    ):
        if given is not None and given < tasks:
            yield (
                f"{tasks} {what} on a node need a CPU each, and on one node the job has {given}: "
                f"ask for more (--exclusive, or --cpus-per-task={tasks})"
            )


def say_how_early(recipe: Recipe, run_dir: Path) -> None:
    """Compare what the run's steps and checkpoints took so far with the job's signal time."""
    if (took := lead.Took.in_folder(run_dir)) is not None:
        lead_s = lead.signal_lead(recipe)
        level = logging.INFO if took.fits(lead_s) else logging.WARNING
        log.log(level, f"aent: {took.describe(lead_s, recipe.checkpoint.every)}")


class BusyError(RuntimeError):
    """Another job is working in the run's folder."""


@contextmanager
def only_job(run_dir: Path, alive: Sequence[str]) -> Iterator[None]:
    """Hold a lock while a job is prepared; its start is recorded at the end. So if two jobs begin
    at once, the second one finds the first.

    Raises BusyError if the job that started last in this folder is another one and is still among
    those ``alive``.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    # beside it, because a folder in which a run may begin is empty
    lock = locked(run_dir.with_name(f".{run_dir.name}.lock"), LOCK_S, "prepare its job")
    with ExitStack() as held:
        try:
            held.enter_context(lock)
        except NoLocksError as error:
            log.warning(f"aent: {error}: another job that starts now will not be noticed")
        last = starts.noted(run_dir)[-1:]
        owner = last[0].get("job") if last else None
        if owner in alive and owner != os.environ.get("SLURM_JOB_ID"):
            raise BusyError(
                f"{run_dir}: job {owner}, which uses this folder, is waiting or running: let it "
                f"end, "
                "cancel it, or choose another RUN_DIR"
            )
        yield


def finished(recipe: Recipe) -> bool:
    """Whether the run is complete: its policy is saved, and no step is missing."""
    run_dir = run_folder(recipe)
    steps = [each.step for each in folders.found(run_dir) if not each.ending]
    newest = max(steps, default=recipe.steps)
    return (run_dir / "policy").is_dir() and newest >= recipe.steps


def count_start(run_dir: Path, max_requeues: int) -> None:
    """Raise CheckpointError if the job that started last was requeued more than ``max_requeues``
    times in a row without a new checkpoint."""
    newest, *before = [(s.get("job"), s.get("checkpoint")) for s in starts.noted(run_dir)[::-1]]
    in_a_row = 1 + len(list(takewhile(lambda earlier: earlier == newest, before)))
    if in_a_row > max_requeues + 1:
        raise CheckpointError(
            f"the job was requeued {in_a_row - 1} times in a row without a new checkpoint "
            f"(MAX_REQUEUES={max_requeues}): it is not started again"
        )


def job_environment(
    recipe: Recipe, run_dir: Path, place: Layout, model_path: Path, disk: int
) -> str:
    """The variables that the batch script sources; ``disk``: bytes that the run's folder needs."""
    values = {
        "FINISHED": "",
        "ATTEMPT": str(starts.attempt(run_dir)),
        "MODEL_PATH": str(model_path),
        "DISK_GIB": f"{disk / 2**30 + SPARE_GIB:.1f}",
        "RANKS": str(ParallelLayout.of(recipe.trainer).num_ranks),
        "RANKS_PER_NODE": str(place.ranks_per_node),
        "ENGINES": str(recipe.rollout.engines),
        "ENGINE_NODES": str(place.engine_nodes),
        "ENGINES_PER_NODE": str(place.engines_per_node),
        "FIRST_ENGINE_GPU": str(place.first_engine_gpu),
    }
    lines = ["# written by aent.slurm.prepare for the batch script"]
    lines += [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    exported = rank_environment(recipe, place.ranks_per_node)
    exported[lead.VARIABLE] = str(lead.signal_lead(recipe))
    for name, value in exported.items():
        lines.append(f"export {name}={shlex.quote(value)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with logged("prepare", starts.attempt(Path(sys.argv[1])) + 1):
        sys.exit(main(sys.argv[1:]))
