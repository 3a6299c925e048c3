"""The worker process of ``aent.tasks.judge``: ``python -m aent.tasks.judge_worker FD PARENT``.

Reads its settings, then jobs from a pipe, and answers each unit of a job with an ``Outcome``. A job
has one unit, or several of an asynchronous grader, which are worked on at once. A unit without
responses asks whether its question's reference can be read. Graders run in its main thread.
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
    """What a worker is told first."""

    graders: list[dict[str, Any]]  # sections as mappings
    datasets: list[tuple[str, dict[str, Any]]]  # reasoning-gym's and its configuration, by grader
    timeouts_s: list[float]  # of a unit, by grader
    memory_bytes: int  # of address space: a power tower must not take the machine's


@dataclass(frozen=True)
class Facts:
    """What is known of a grader once it is imported."""

    at_once: int
    columns: tuple[str, ...]
    lacks: tuple[str, ...]  # of a sandbox, in sentences


@dataclass(frozen=True)
class Unit:
    """What is judged in one call of a grader."""

    number: int  # within the pool
    grader: int  # its place in the settings
    question: Question
    responses: tuple[Response, ...]  # none: only the reference is read


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: a reading for each response, or an error."""

    readings: list[Reading]
    error: str = ""  # "timeout" or "exception: ..."
    seconds: float = 0.0


def main(fd: int, parent: int) -> None:
    """Judge until the parent closes the pipe or dies."""
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGUSR1):  # Ctrl-C, runtime.signals: the parent's
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(fd)
    settings: Settings = pipe.recv()
    resource.setrlimit(resource.RLIMIT_AS, (settings.memory_bytes, settings.memory_bytes))
    logging.disable(logging.WARNING)  # math-verify warns at every call without its own time limit
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
    loop = asyncio.new_event_loop()  # one: what an asynchronous function keeps belongs to it
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
        else:  # not in the loop: the function may have one of its own
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
    """As ``_judge``, beside other units, with a time limit of its own."""
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
    # by its own name: what is sent must not be of __main__, which is another module over there
    from aent.tasks import judge_worker

    judge_worker.main(int(sys.argv[1]), int(sys.argv[2]))
