"""A curriculum by measured difficulty: which questions are asked again, and in which order.

Everything is a function of the run's recorded rollouts, so a step's questions do not depend on when
or how often the run was stopped.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aent.data.question import Question
from aent.recipe.sources import CurriculumSection


@dataclass(frozen=True)
class Tried:
    """The record of a question that was asked."""

    times: int  # how often it was asked
    step: int  # the step in which it was last asked
    success: float | None  # share of right responses then; None: no response could be scored


Record = Mapping[int, Tried]  # by the question's index


@dataclass(frozen=True)
class Order:
    """A source's questions, in a step's order."""

    waiting: list[Question]
    resting: list[Question] = field(default_factory=list)  # only if too few are due


def ordered(
    questions: Sequence[Question],
    places: int,
    settings: CurriculumSection,
    record: Record,
    step: int,
    seed: str,
) -> Order:
    """The order in which ``questions`` would be asked in ``step``, of which there are ``places``.

    First come the replayed ones, beginning with those asked longest ago (among these, with those
    whose success is nearest to one half, where responses differ most). The others follow by how
    often they were asked, as in epochs, and among equals by ``settings.order``. Resting questions
    come last, those nearest to the window first. Remaining ties are in a random order that depends
    on the step.
    """
    shuffled = random.Random(f"{seed}/{step}").sample(questions, len(questions))
    waiting = [q for q in shuffled if not rests(record.get(q.index), settings, step)]
    again = [q for q in waiting if q.index in record]
    again.sort(key=lambda q: (record[q.index].step, abs(_success(record[q.index]) - 0.5)))
    # 10 x 0.1 is 1, despite binary fractions
    replayed = again[: int(places * settings.replay + 1e-9)]
    taken = {q.index for q in replayed}

    def place(question: Question) -> tuple[int, float]:
        known = record.get(question.index)
        if known is None or settings.order == "shuffled":
            return (0 if known is None else known.times), 0.0
        return known.times, _success(known) * (-1 if settings.order == "easy_first" else 1)

    others = sorted((q for q in waiting if q.index not in taken), key=place)
    resting = [q for q in shuffled if rests(record.get(q.index), settings, step)]
    resting.sort(key=lambda q: (_distance(record[q.index], settings), record[q.index].step))
    return Order(replayed + others, resting)


def rests(known: Tried | None, settings: CurriculumSection, step: int) -> bool:
    """Whether a question is not due in ``step``: its success was outside the window, and the time
    for another try has not come."""
    if known is None or _distance(known, settings) == 0:
        return False
    return settings.retry_after is None or step - known.step < settings.retry_after


def _success(known: Tried) -> float:
    return 0.5 if known.success is None else known.success


def _distance(known: Tried, settings: CurriculumSection) -> float:
    """How far the success lies outside the window; 0 if it is unknown."""
    if known.success is None:
        return 0.0
    return max(settings.low - known.success, known.success - settings.high, 0.0)


def learnt(record: Record, step: int, outcomes: Mapping[int, tuple[int, int]]) -> Record:
    """The record after ``step``. outcomes: (right responses, graded responses) of each
    question that was asked, by its index."""
    after = dict(record)
    for index, (right, judged) in outcomes.items():
        before = record.get(index, Tried(0, step, None))
        success = right / judged if judged else before.success
        after[index] = Tried(before.times + 1, step, success)
    return after


def metrics(
    settings: CurriculumSection, before: Record, after: Record, step: int, asked: Iterable[int]
) -> dict[str, float]:
    """The metrics of ``step``, which ``asked`` these questions and changed the record from
    ``before`` to ``after`` (docs/metrics.md)."""
    asked = list(asked)
    known = [tried for tried in after.values() if tried.success is not None]
    found = {
        "curriculum/known": float(len(after)),
        "curriculum/repeated_share": _share([index in before for index in asked]),
        "curriculum/outside_share": _share(
            [rests(before.get(index), settings, step) for index in asked]
        ),
    }
    if known:
        found["curriculum/success"] = sum(map(_success, known)) / len(known)
        found["curriculum/in_window_share"] = _share([_distance(t, settings) == 0 for t in known])
    return found


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def to_json(record: Record) -> dict[str, list[Any]]:
    """The record in the form that a checkpoint stores."""
    return {str(index): [t.times, t.step, t.success] for index, t in record.items()}


def from_json(kept: Mapping[str, Sequence[Any]]) -> Record:
    """The inverse of ``to_json``."""
    return {int(index): Tried(*values) for index, values in kept.items()}
