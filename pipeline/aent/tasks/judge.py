"""Judges: graders in worker processes that can be killed.

An answer that hangs a grader or makes it throw costs that answer only: it gets reward 0, its
verdict says why, and the worker that hung is killed and replaced.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import psutil

from aent.data.question import Question
from aent.data.response import Response
from aent.data.rollout import Grade, Verdict
from aent.recipe.schema import TaskSection
from aent.runtime.timeline import JUDGES, Timeline
from aent.tasks.graders import verdict
from aent.tasks.judge_worker import Facts, Outcome, Settings, Unit
from aent.tasks.mixture import appointed

START_TIMEOUT_S = 120.0  # of a worker: some graders import for ten seconds
DIED = "exception: the judge process died"
GRACE_S = 2.0  # for an asynchronous grader's own time limit, which costs one answer only


@dataclass
class _Worker:
    process: subprocess.Popen
    pipe: Connection
    deadline: float  # of its start, then of the units it judges
    started: float = 0.0  # those units
    ready: bool = False
    units: set[int] = field(default_factory=set)  # numbers of those it judges


class JudgePool:
    """Worker processes that judge answers; they die with this process, and what they have started
    when they are killed.

    Make it in a thread that lives as long as the pool: the kernel ends the workers with the thread
    that started them.
    """

    def __init__(self, section: TaskSection) -> None:
        """Start the workers; they import their graders while the caller goes on."""
        self._section = section
        self.timeline = Timeline()  # of what they judge
        self._judges = appointed(section)
        graders = [judge.grader for judge in self._judges]
        self._settings = Settings(
            [grader.model_dump() for grader in graders],
            [(judge.dataset, judge.config) for judge in self._judges],
            [grader.limit_s(section.judge_timeout_s) for grader in graders],
            int(section.judge_memory_gib * 2**30),
        )
        self._facts: list[Facts] = []
        self._workers = [self._start() for _ in range(section.judge_processes)]
        self._closed = False

    @property
    def size(self) -> int:
        """How many answers it takes to keep every process busy."""
        concurrent = [judge.grader.at_once for judge in self._judges]
        return self._section.judge_processes * max(concurrent)

    def judge(
        self,
        questions: Sequence[Question],
        responses: Sequence[Response],
        on_progress: Callable[[], None] = lambda: None,
    ) -> list[Verdict]:
        """Return one verdict per (question, response), in their order. For a grader of groups, the
        responses to one question are a group.

        Raises ValueError in one sentence for a grader that cannot be made, RuntimeError if a worker
        dies while it starts, TimeoutError if one does not start in time.
        """
        if len(questions) != len(responses):
            raise ValueError(f"{len(questions)} questions, {len(responses)} responses")
        units: list[Unit] = []
        places: list[list[int]] = []
        for number, judge in enumerate(self._judges):
            grader = judge.grader
            chosen = [place for place, q in enumerate(questions) if judge.judges(q)]
            # a service gets them in one request
            whole = grader.kind == "http" or (grader.kind == "python" and grader.group)
            for group in _groups(questions, chosen, whole):
                of_group = tuple(responses[place] for place in group)
                units.append(Unit(len(units), number, questions[group[0]], of_group))
                places.append(group)
        grades: list[list[Grade]] = [[] for _ in responses]
        for unit, group, outcome in zip(units, places, self._run(units, on_progress)):
            name = self._judges[unit.grader].grader.name
            for i, place in enumerate(group):
                reward, parts = (0.0, {}) if outcome.error else outcome.readings[i]
                seconds = outcome.seconds / len(group)
                grades[place].append(Grade(name, reward, parts, outcome.error, seconds))
        weights = [
            {judge.grader.name: judge.grader.weight for judge in self._judges if judge.judges(q)}
            for q in questions
        ]
        return [verdict(*each) for each in zip(grades, weights)]

    def unreadable(self, questions: Sequence[Question], kind: str) -> list[Question]:
        """The questions whose reference the grader of this kind cannot read; raises as ``judge``.
        One that takes it too long, or at which its process died, is not among them: that is the
        machine's affair, and a run that is resumed must find the same ones."""
        grader = next(i for i, judge in enumerate(self._judges) if judge.grader.kind == kind)
        units = [Unit(i, grader, question, ()) for i, question in enumerate(questions)]
        passing = ("", "timeout")
        return [
            question
            for question, outcome in zip(questions, self._run(units, lambda: None))
            if outcome.error not in passing and not outcome.error.startswith(DIED)
        ]

    def facts(self) -> list[Facts]:
        """What is known of each grader, when a worker has imported them; raises as ``judge``."""
        self._run([], lambda: None, until=lambda: bool(self._facts))
        return self._facts

    def _run(
        self,
        units: Sequence[Unit],
        on_progress: Callable[[], None],
        until: Callable[[], bool] = lambda: True,
    ) -> list[Outcome]:
        """Each unit's outcome."""
        if self._closed:
            raise RuntimeError("the judges are closed")
        waiting = deque(units)
        outcomes: dict[int, Outcome] = {}
        alone: set[int] = set()  # numbers of units that shared a worker with one that hung
        try:
            while len(outcomes) < len(units) or not until():
                for worker in list(self._workers):
                    if worker.ready and not worker.units and waiting:
                        self._hand(worker, waiting, alone)
                busy = [w for w in self._workers if w.units or not w.ready]
                soonest = min(w.deadline for w in busy)
                wait([w.pipe for w in busy], max(0.0, soonest - time.monotonic()))
                for worker in busy:
                    for number, outcome in self._look(worker).items():
                        if outcome is None:
                            alone.add(number)
                            waiting.appendleft(units[number])
                        else:
                            outcomes[number] = outcome
                            grader = self._judges[units[number].grader].grader.name
                            self.timeline.add(grader, time.time() - outcome.seconds, JUDGES)
                            on_progress()
        except BaseException:
            self.close()  # workers may be left with answers that nobody waits for
            raise
        return [outcomes[i] for i in range(len(units))]

    def close(self) -> None:
        """End the workers. A closed pool judges nothing more."""
        self._closed = True
        for worker in self._workers:
            _end(worker)
        self._workers = []

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid())]
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "aent.tasks.judge_worker", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints is no result
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        ours.send(self._settings)
        return _Worker(process, ours, time.monotonic() + START_TIMEOUT_S)

    def _hand(self, worker: _Worker, waiting: deque[Unit], alone: set[int]) -> None:
        """Give an idle worker the next unit, or several of an asynchronous grader; if it is dead,
        another one starts."""
        job = [waiting[0]]
        grader = job[0].grader
        at_once = self._facts[grader].at_once
        if at_once and job[0].number not in alone:
            share = min(at_once, math.ceil(len(waiting) / len(self._workers)))
            for unit in list(waiting)[1:share]:
                if unit.grader != grader or unit.number in alone:
                    break
                job.append(unit)
        try:
            worker.pipe.send(job)
        except OSError:
            self._replace(worker)
            return
        for _ in job:
            waiting.popleft()
        worker.units = {unit.number for unit in job}
        limit = self._settings.timeouts_s[grader] + (GRACE_S if at_once else 0.0)
        worker.started = time.monotonic()
        worker.deadline = worker.started + limit

    def _look(self, worker: _Worker) -> dict[int, Outcome | None]:
        """What became of a busy worker's units, by number; None: to be judged again, alone."""
        if worker.pipe.poll():
            return self._receive(worker)
        if time.monotonic() < worker.deadline:
            return {}
        if not worker.ready:
            raise TimeoutError(
                f"a judge process (task.graders) did not start within {START_TIMEOUT_S:.0f} s"
            )
        self._replace(worker)
        return _lost(worker, "timeout")

    def _receive(self, worker: _Worker) -> dict[int, Outcome | None]:
        """Read a message of ``worker``: it is ready, it has judged, or (end of file) it is dead."""
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)  # for its own exit code, not that of our kill
            self._replace(worker)
            code = worker.process.returncode
            if not worker.ready:
                raise RuntimeError(
                    f"a judge process (task.graders) died while it started (exit code {code})"
                ) from None
            return _lost(worker, f"{DIED} (exit code {code})")
        if worker.ready:
            number, outcome = message
            worker.units.remove(number)
            return {number: outcome}
        if isinstance(message, str):
            raise ValueError(message)
        worker.ready, self._facts = True, message
        return {}

    def _replace(self, worker: _Worker) -> None:
        _end(worker)
        self._workers[self._workers.index(worker)] = self._start()


def _groups(questions: Sequence[Question], chosen: Sequence[int], whole: bool) -> list[list[int]]:
    """Those of the chosen places whose responses are judged together: each alone, or all to one
    question."""
    if not whole:
        return [[place] for place in chosen]
    groups: dict[int, list[int]] = {}
    for place in chosen:
        groups.setdefault(questions[place].index, []).append(place)
    return list(groups.values())


def _lost(worker: _Worker, error: str) -> dict[int, Outcome | None]:
    """Units whose worker is gone. Of several nobody knows which one it was."""
    one = Outcome([], error, time.monotonic() - worker.started)
    return dict.fromkeys(worker.units, one if len(worker.units) == 1 else None)


def _end(worker: _Worker) -> None:
    """Kill the worker with every process that it has started."""
    worker.pipe.close()
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(worker.process.pid).children(recursive=True)
        worker.process.kill()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    worker.process.wait()
