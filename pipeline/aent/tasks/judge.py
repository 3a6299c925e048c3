"""Judges: verifiers in worker processes that can be killed.

An answer that hangs its verifier or makes it throw costs that answer only: it gets reward 0, its
verdict says why, and the worker that hung is killed and replaced.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from aent.data.question import Question
from aent.data.rollout import Verdict
from aent.recipe.schema import TaskSection

START_TIMEOUT_S = 120.0  # of a worker: some verifiers import for ten seconds
DIED = "exception: the judge process died"


@dataclass
class _Worker:
    process: subprocess.Popen
    pipe: Connection
    deadline: float  # of its start, then of the answer it judges
    ready: bool = False
    answer: int = -1  # index of the one it judges, -1 while idle


class JudgePool:
    """Worker processes that judge answers; they die with this process.

    Make it in a thread that lives as long as the pool: the kernel ends the workers with the thread
    that started them.
    """

    def __init__(self, section: TaskSection) -> None:
        """Start the workers; they import their verifier while the caller goes on."""
        self._section = section
        self._workers = [self._start() for _ in range(section.judge_processes)]
        self._closed = False

    @property
    def size(self) -> int:
        """How many answers are judged at once."""
        return self._section.judge_processes

    def judge(self, questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict per (question, response), in their order.

        Raises RuntimeError if a worker cannot start, TimeoutError if one does not start in time.
        """
        return self._judge(questions, responses)

    def unreadable(self, questions: Sequence[Question]) -> list[Question]:
        """The questions whose reference the verifier cannot read; raises as ``judge``. One that
        takes it too long, or at which its process died, is not among them: that is the machine's
        affair, and a run that is resumed must find the same ones."""
        verdicts = self._judge(questions, [None] * len(questions))
        passing = ("", "timeout")
        return [
            q
            for q, v in zip(questions, verdicts)
            if v.error not in passing and not v.error.startswith(DIED)
        ]

    def _judge(
        self, questions: Sequence[Question], responses: Sequence[str | None]
    ) -> list[Verdict]:
        if self._closed:
            raise RuntimeError("the judges are closed")
        if len(questions) != len(responses):
            raise ValueError(f"{len(questions)} questions, {len(responses)} responses")
        jobs = list(zip(responses, questions))
        waiting = list(range(len(jobs)))[::-1]
        verdicts: dict[int, Verdict] = {}
        try:
            while len(verdicts) < len(jobs):
                for worker in list(self._workers):
                    idle = worker.ready and worker.answer < 0
                    if idle and waiting and self._hand(worker, waiting[-1], jobs):
                        waiting.pop()
                busy = [w for w in self._workers if w.answer >= 0 or not w.ready]
                soonest = min(w.deadline for w in busy)
                wait([w.pipe for w in busy], max(0.0, soonest - time.monotonic()))
                for worker in busy:
                    verdict = self._look(worker)
                    if verdict is not None:
                        verdicts[verdict[0]] = verdict[1]
        except BaseException:
            self.close()  # workers may be left with answers that nobody waits for
            raise
        return [verdicts[i] for i in range(len(jobs))]

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
        section = self._section
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
        ours.send((section.verifier, section.name, section.config))
        return _Worker(process, ours, time.monotonic() + START_TIMEOUT_S)

    def _hand(self, worker: _Worker, answer: int, jobs: list) -> bool:
        """Give an answer to an idle worker; False if that worker is dead (another one starts)."""
        try:
            worker.pipe.send(jobs[answer])
        except OSError:
            self._replace(worker)
            return False
        worker.answer = answer
        worker.deadline = time.monotonic() + self._section.judge_timeout_s
        return True

    def _look(self, worker: _Worker) -> tuple[int, Verdict] | None:
        """What became of a busy worker: (index of the answer, verdict), or None if it goes on."""
        if worker.pipe.poll():
            return self._receive(worker)
        if time.monotonic() < worker.deadline:
            return None
        if not worker.ready:
            raise TimeoutError(
                f"a judge process (task.verifier {self._section.verifier}) did not start within "
                f"{START_TIMEOUT_S:.0f} s"
            )
        self._replace(worker)
        return worker.answer, Verdict(0.0, "timeout")

    def _receive(self, worker: _Worker) -> tuple[int, Verdict] | None:
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
                    f"a judge process died while it started (exit code {code})"
                ) from None
            how = f"{DIED} (exit code {code})"
            return worker.answer, Verdict(0.0, how)
        if worker.ready:
            reward, error = message
            answer, worker.answer = worker.answer, -1
            return answer, Verdict(reward, error)
        if message:
            raise RuntimeError(
                f"a judge process (task.verifier {self._section.verifier}) did not start: {message}"
            )
        worker.ready = True
        return None

    def _replace(self, worker: _Worker) -> None:
        _end(worker)
        self._workers[self._workers.index(worker)] = self._start()


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.wait()
