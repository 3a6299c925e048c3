"""The worker process of ``aent.tasks.judge``: ``python -m aent.tasks.judge_worker FD PARENT``.

It reads its settings and then jobs from a pipe, and answers each unit of a job with an ``Outcome``.
A job has one unit, or several units of an asynchronous grader, which run concurrently. A unit
without responses asks whether the question's reference can be read. Graders run in the main thread.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from aent.data.question import Question
from aent.data.response import Response
from aent.runtime.children import die_with_parent

if TYPE_CHECKING:
    from aent.tasks.graders import Grader, Reading

MAX_ERROR = 500  # characters


@dataclass(frozen=True)
class Settings:
    """A worker's settings, which it reads first."""

    graders: list[dict[str, Any]]  # sections as mappings
    # reasoning-gym's data set and its configuration, by grader
    datasets: list[tuple[str, dict[str, Any]]]
    timeouts_s: list[float]  # time limit of a unit, by grader
    memory_bytes: int  # address space, so that a power tower cannot use up the machine's memory


@dataclass(frozen=True)
class Facts:
    """The properties of an imported grader."""

    at_once: int
    columns: tuple[str, ...]
    lacks: tuple[str, ...]  # what its sandbox lacks, in sentences


@dataclass(frozen=True)
class Unit:
    """The responses that one call of a grader scores."""

    number: int  # number within the pool
    grader: int  # its index in the settings
    question: Question
    responses: tuple[Response, ...]  # none: only read the reference


@dataclass(frozen=True)
class Outcome:
    """The result of a unit: a reading for each response, or an error."""

    readings: list[Reading]
    error: str = ""  # "timeout" or "exception: ..."
    seconds: float = 0.0


def main(fd: int, parent: int) -> None:
    """Grade until the parent closes the pipe or dies."""
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGUSR1):  # the parent handles Ctrl-C (runtime.signals)
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(fd)
    settings: Settings = pipe.recv()
    resource.setrlimit(resource.RLIMIT_AS, (settings.memory_bytes, settings.memory_bytes))
    # math-verify prints a warning at every call without its own time limit
    logging.disable(logging.WARNING)
    from aent.tasks import graders

    made = []
    for spec, dataset in zip(settings.graders, settings.datasets):
        try:
            made.append(graders.make(spec, *dataset))
        except Exception as error:
            words = str(error) if isinstance(error, ValueError) else _told(error, None)
            pipe.send(f"task.graders: {spec['name']}: {words}")
            return
    pipe.send([Facts(grader.at_once, grader.columns, grader.lacks) for grader in made])  # ready
    # only one event loop, to which an asynchronous function's objects belong
    loop = asyncio.new_event_loop()
    while True:
        try:
            units: Sequence[Unit] = pipe.recv()
        except EOFError:
            return
        grader = made[units[0].grader]
        if grader.at_once:
            timeout_s = settings.timeouts_s[units[0].grader]
            work = (_judge_beside(grader, unit, timeout_s, pipe.send) for unit in units)
            loop.run_until_complete(_all(work))
        else:  # outside the loop, because the function may run its own
            for unit in units:
                pipe.send((unit.number, _judge(grader, unit)))


def _judge(grader: Grader, unit: Unit) -> Outcome:
    started = time.perf_counter()
    readings: list[Reading] = []
    error = ""
    try:
        if unit.responses:
            values = grader.call(unit.responses, unit.question)
            readings = grader.read(values, len(unit.responses))
        else:
            _read_reference(grader, unit.question)
    except Exception as raised:
        error = f"exception: {_told(raised, grader)}"[:MAX_ERROR]
    return Outcome(readings, error, time.perf_counter() - started)


async def _all(work: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*work)


async def _judge_beside(
    grader: Grader, unit: Unit, timeout_s: float, send: Callable[[tuple[int, Outcome]], None]
) -> None:
    """As ``_judge``, concurrently with other units and with its own time limit."""
    started = time.perf_counter()
    readings: list[Reading] = []
    error = ""
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            values = await grader.call(unit.responses, unit.question)
        readings = grader.read(values, len(unit.responses))
    except Exception as raised:
        late = isinstance(raised, TimeoutError) and limit.expired()
        error = "timeout" if late else f"exception: {_told(raised, grader)}"[:MAX_ERROR]
    send((unit.number, Outcome(readings, error, time.perf_counter() - started)))


def _read_reference(grader: Grader, question: Question) -> None:
    from aent.tasks import verifiers

    if grader.verifier is not None:
        verifiers.check_reference(grader.verifier, question)


def _told(error: Exception, grader: Grader | None) -> str:
    from aent.tasks import functions

    return functions.told(error, None if grader is None else grader.source)


if __name__ == "__main__":
    # under its real name: objects of __main__ could not be unpickled by the parent
    from aent.tasks import judge_worker

    judge_worker.main(int(sys.argv[1]), int(sys.argv[2]))
