"""Graders in worker processes that can be killed.

An answer that makes a grader hang or raise costs only itself: it gets reward 0, its verdict says
why, and a worker that hung is killed and replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from aent.data.question import Question
from aent.data.response import Response
from aent.data.rollout import Grade, Verdict
from aent.recipe.schema import TaskSection
from aent.runtime.timeline import Timeline
from aent.tasks.graders import verdict
from aent.tasks.judge_processes import DIED, JudgeProcesses
from aent.tasks.judge_worker import Facts, Outcome, Settings, Unit
from aent.tasks.mixture import appointed


class JudgePool:
    """Worker processes that grade answers. They die with this process, and their own children die
    when they are killed. Several threads may have answers graded at once.
    """

    def __init__(self, section: TaskSection) -> None:
        """Start the workers; they import their graders while the caller continues."""
        self._judges = appointed(section)
        graders = [judge.grader for judge in self._judges]
        settings = Settings(
            [grader.model_dump() for grader in graders],
            [(judge.dataset, judge.config) for judge in self._judges],
            [grader.limit_s(section.judge_timeout_s) for grader in graders],
            int(section.judge_memory_gib * 2**30),
        )
        self._processes = JudgeProcesses(settings, section.judge_processes)

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
        return self.submit(questions, responses, on_progress).result()

    def submit(
        self,
        questions: Sequence[Question],
        responses: Sequence[Response],
        on_progress: Callable[[], None] = lambda: None,
    ) -> Future[list[Verdict]]:
        """``judge``, without waiting. ``on_progress`` is called in the pool's thread, at each
        response (or group of them) that is graded; if it raises, that is the call's error."""
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
        verdicts: Future[list[Verdict]] = Future()

        def put_together(judged: Future[list[Outcome]]) -> None:
            if not verdicts.set_running_or_notify_cancel():
                return  # the caller no longer waits for them
            try:
                found = self._verdicts(questions, units, places, judged.result())
            except BaseException as error:
                verdicts.set_exception(error)
            else:
                verdicts.set_result(found)

        self._processes.judge(units, on_progress).add_done_callback(put_together)
        return verdicts

    def _verdicts(
        self,
        questions: Sequence[Question],
        units: Sequence[Unit],
        places: Sequence[Sequence[int]],
        outcomes: Sequence[Outcome],
    ) -> list[Verdict]:
        """The verdict on the response to each question, from the outcomes of units that have the
        responses at these places."""
        grades: list[list[Grade]] = [[] for _ in questions]
        for unit, group, outcome in zip(units, places, outcomes):
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
        A question that took too long, or at which its process died, is not among them: that
        depends on the machine, and a resumed run must find the same ones."""
        grader = next(i for i, judge in enumerate(self._judges) if judge.grader.kind == kind)
        units = [Unit(i, grader, question, ()) for i, question in enumerate(questions)]
        passing = ("", "timeout")
        return [
            question
            for question, outcome in zip(
                questions, self._processes.judge(units, lambda: None).result()
            )
            if outcome.error not in passing and not outcome.error.startswith(DIED)
        ]

    def facts(self) -> list[Facts]:
        """The facts of each grader, once a worker has imported them; raises as ``judge``."""
        return self._processes.facts().result()

    def draw_on(self, timeline: Timeline) -> None:
        """Record in it when each answer was graded."""
        self._processes.timeline = timeline

    def close(self) -> None:
        """End the workers. A closed pool grades nothing more: waiting callers get RuntimeError."""
        self._processes.close()

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _groups(questions: Sequence[Question], chosen: Sequence[int], whole: bool) -> list[list[int]]:
    """The chosen places whose responses are graded together: each alone, or all to one
    question."""
    if not whole:
        return [[place] for place in chosen]
    groups: dict[int, list[int]] = {}
    for place in chosen:
        groups.setdefault(questions[place].index, []).append(place)
    return list(groups.values())
