"""The graders' worker processes, and the thread that gives them responses to grade."""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait

import psutil

from aent.runtime.timeline import JUDGES, Timeline
from aent.tasks.judge_worker import Facts, Outcome, Settings, Unit

START_TIMEOUT_S = 120.0  # of a worker: some graders import for ten seconds
DIED = "exception: the grading process died"
GRACE_S = 2.0  # for an asynchronous grader's own time limit, which costs one answer only


@dataclass
class _Worker:
    process: subprocess.Popen
    pipe: Connection
    deadline: float  # of its start, then of the units it grades
    started: float = 0.0  # when it got those units
    ready: bool = False
    units: list[Unit] = field(default_factory=list)  # those it grades


@dataclass
class _Order:
    """The units that one call wants graded."""

    units: list[Unit]  # numbered within the pool
    on_progress: Callable[[], None]
    done: Future[list[Outcome]] = field(default_factory=Future)
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by number

    def note(self, number: int, outcome: Outcome) -> None:
        """One of its units has been graded."""
        self.outcomes[number] = outcome
        try:
            self.on_progress()
        except Exception as error:
            self.fail(error)
        if len(self.outcomes) == len(self.units):
            self.end()

    def end(self) -> None:
        """All of its units are graded."""
        if not self.done.done():
            self.done.set_result([self.outcomes[unit.number] for unit in self.units])

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class JudgeProcesses:
    """Its thread starts the workers (the kernel ends a worker with the thread that started it), and
    gives them the units of any other thread's orders, in the order of arrival.
    """

    def __init__(self, settings: Settings, processes: int) -> None:
        self._settings = settings
        self.timeline = Timeline()  # of their work
        self._facts: Future[list[Facts]] = Future()
        self._numbers = itertools.count()
        self._workers: list[_Worker] = []
        self._waiting: deque[Unit] = deque()
        self._alone: set[int] = set()  # numbers of units that shared a worker with one that hung
        self._orders: dict[int, _Order] = {}  # under way, by the number of each of their units
        self._awaited = False  # whether a caller waits, or has waited, for the workers
        # from other threads: orders, and None for the end; the pipe wakes the pool's own thread
        self._inbox: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._wake, self._woken = multiprocessing.Pipe()
        self._lock = threading.Lock()  # guards the fields below, and the inbox's end
        self._error: BaseException | None = None  # why nothing is graded any more
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(processes, started), name="judges", daemon=True
        )
        self._thread.start()
        started.wait()

    def judge(
        self, units: Sequence[Unit], on_progress: Callable[[], None]
    ) -> Future[list[Outcome]]:
        """The outcomes of the units, which are numbered here. Raises, or sets on the future, the
        errors of ``JudgePool.judge``, and those of ``on_progress`` in the pool's thread."""
        order = _Order([replace(u, number=next(self._numbers)) for u in units], on_progress)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._put(order)
        return order.done

    def facts(self) -> Future[list[Facts]]:
        """The facts of each grader, once a worker has imported them."""
        self.judge([], lambda: None)
        return self._facts

    def close(self) -> None:
        """End the workers; orders in progress get RuntimeError."""
        with self._lock:
            if self._error is None:
                self._error = RuntimeError("the graders' processes are closed")
            self._put(None)
        self._thread.join()

    def _put(self, order: _Order | None) -> None:
        self._inbox.put(order)
        with contextlib.suppress(OSError):  # the thread has ended
            if not self._woken.poll():  # one is enough, and many would fill the pipe
                self._wake.send_bytes(b"")

    def _serve(self, processes: int, started: threading.Event) -> None:
        """The pool's thread."""
        try:
            try:
                self._workers += [self._start() for _ in range(processes)]
            finally:
                started.set()
            while self._take_orders():
                self._hand_out()
                self._await_answers()
        except BaseException as error:
            with self._lock:
                self._error = error if self._error is None else self._error
        finally:
            for worker in self._workers:
                _end(worker)
            self._workers = []
            self._fail()

    def _fail(self) -> None:
        """Report the error to every caller that still waits."""
        with self._lock:
            assert self._error is not None
            left = {id(order): order for order in self._orders.values()}
            while not self._inbox.empty():
                if (order := self._inbox.get()) is not None:
                    left[id(order)] = order
            for order in left.values():
                order.fail(self._error)
            if not self._facts.done():
                self._facts.set_exception(self._error)
            self._wake.close()
            self._woken.close()

    def _take_orders(self) -> bool:
        """Take the orders that have arrived; return whether the pool continues."""
        while not self._inbox.empty():
            order = self._inbox.get()
            if order is None:
                return False
            self._awaited = True
            self._orders |= dict.fromkeys((unit.number for unit in order.units), order)
            self._waiting += order.units
            if not order.units:
                order.end()
        return True

    def _hand_out(self) -> None:
        for worker in list(self._workers):
            if worker.ready and not worker.units and self._waiting:
                self._hand(worker)

    def _await_answers(self) -> None:
        """Wait for a worker or a new order."""
        busy = [w for w in self._workers if w.units or not w.ready]
        # a start that no caller waits for has no deadline
        soonest = min((w.deadline for w in busy if w.ready or self._awaited), default=None)
        patience = None if soonest is None else max(0.0, soonest - time.monotonic())
        wait([self._woken, *(w.pipe for w in busy)], patience)
        while self._woken.poll():
            self._woken.recv_bytes()
        for worker in busy:
            units = {unit.number: unit for unit in worker.units}
            for number, outcome in self._look(worker).items():
                if outcome is None:
                    self._alone.add(number)
                    self._waiting.appendleft(units[number])
                else:
                    self._alone.discard(number)
                    name = self._settings.graders[units[number].grader]["name"]
                    self.timeline.add(name, time.time() - outcome.seconds, JUDGES)
                    self._orders.pop(number).note(number, outcome)

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid())]
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "aent.tasks.judge_worker", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints is not a result
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        ours.send(self._settings)
        return _Worker(process, ours, time.monotonic() + START_TIMEOUT_S)

    def _hand(self, worker: _Worker) -> None:
        """Give an idle worker the next unit, or several of an asynchronous grader. A dead worker is
        replaced."""
        waiting, alone = self._waiting, self._alone
        job = [waiting[0]]
        grader = job[0].grader
        at_once = self._facts.result()[grader].at_once
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
        worker.units = job
        limit = self._settings.timeouts_s[grader] + (GRACE_S if at_once else 0.0)
        worker.started = time.monotonic()
        worker.deadline = worker.started + limit

    def _look(self, worker: _Worker) -> dict[int, Outcome | None]:
        """The outcomes of a busy worker's units, by number; None: to be graded again, alone."""
        if worker.pipe.poll():
            return self._receive(worker)
        if time.monotonic() < worker.deadline or not (worker.ready or self._awaited):
            return {}
        if not worker.ready:
            raise TimeoutError(
                f"a grading process (task.graders) did not start within {START_TIMEOUT_S:.0f} s"
            )
        self._replace(worker)
        return _lost(worker, "timeout")

    def _receive(self, worker: _Worker) -> dict[int, Outcome | None]:
        """Read a message of ``worker``: it is ready, it has graded, or (end of file) it is dead."""
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)  # for its own exit code, not that of our kill
            self._replace(worker)
            code = worker.process.returncode
            if not worker.ready:
                raise RuntimeError(
                    f"a grading process (task.graders) died while it started (exit code {code})"
                ) from None
            return _lost(worker, f"{DIED} (exit code {code})")
        if worker.ready:
            number, outcome = message
            worker.units = [unit for unit in worker.units if unit.number != number]
            return {number: outcome}
        if isinstance(message, str):
            raise ValueError(message)
        worker.ready = True
        if not self._facts.done():
            self._facts.set_result(message)
        return {}

    def _replace(self, worker: _Worker) -> None:
        _end(worker)
        self._workers[self._workers.index(worker)] = self._start()


def _lost(worker: _Worker, error: str) -> dict[int, Outcome | None]:
    """The units of a lost worker. If there were several, it is unknown which one ended it."""
    one = Outcome([], error, time.monotonic() - worker.started)
    return {unit.number: one if len(worker.units) == 1 else None for unit in worker.units}


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
