"""The questions that a step asks: functions of the run's seed, the step and, with a curriculum, the
records of earlier steps."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

from aent.data.question import Question
from aent.recipe.sources import CurriculumSection
from aent.tasks import Task, curriculum


@dataclass(frozen=True)
class Choice:
    """The questions of a step, and spare ones that can replace those without signal."""

    questions: list[Question]
    spare: dict[str, list[Question]]  # by source, so that a source keeps its share


def choose(
    task: Task,
    step: int,
    n: int,
    seed: int,
    settings: CurriculumSection | None = None,
    record: curriculum.Record | None = None,
) -> Choice:
    """The ``n`` distinct training questions of ``step`` (from 0), and the spare ones.

    Without a curriculum, each epoch of a source is shuffled anew, and its remainder is left out so
    that no step has a question twice. With one, ``curriculum.ordered`` gives the order; if too few
    questions are due, resting ones fill the step. With several sources or a curriculum, the step's
    questions are in a random order, so that mini-batches are alike.

    Raises ValueError if a source has fewer questions than a step may ask of it.
    """
    check(task, n)
    questions: list[Question] = []
    spare = {}
    for source, count in shares(task.weights, n, step, seed).items():
        own = task.of(source)
        key = f"{seed}/{source}" if source else f"{seed}"
        if settings is None:
            chosen = _of_epoch(own, step, most(task.weights, n)[source], key)[:count]
            taken = {question.index for question in chosen}
            others = random.Random(f"{key}/{step}/replacements").sample(own, len(own))
            spare[source] = [question for question in others if question.index not in taken]
        else:
            order = curriculum.ordered(own, count, settings, record or {}, step, key)
            missing = max(0, count - len(order.waiting))
            chosen = order.waiting[:count] + order.resting[:missing]
            spare[source] = order.waiting[count:]
        questions += chosen
    if settings is not None or len(task.weights) > 1:
        random.Random(f"{seed}/{step}/order").shuffle(questions)
    return Choice(questions, spare)


def check(task: Task, n: int) -> None:
    """Raise ValueError if a source has fewer questions than a step of ``n`` may need from it."""
    for source, count in most(task.weights, n).items():
        there = len(task.of(source))
        if there < count and source:
            raise ValueError(
                f"rollout.prompts_per_step={n}: a step may need {count} questions of "
                f"{source} (task.sources), which has {there} training questions"
            )
        if there < count:
            raise ValueError(
                f"rollout.prompts_per_step={n}, but the task has {there} training questions"
            )


def shares(weights: Mapping[str, float], n: int, step: int, seed: int) -> dict[str, int]:
    """How many of a step's ``n`` prompts come from each source.

    Each number is n weight / sum of the weights, rounded down or up. Over any period of the
    rounding (the common denominator of these numbers) it is exactly that on average, whichever step
    the period begins with. The method is systematic sampling: the sources' intervals lie end to end
    on [0, n], and a count is the number of integers in the shifted interval. The shift takes the
    multiples of 1 / period, in an order in which neighbors are far apart.
    """
    bounds = _bounds(weights, n)
    period = math.lcm(*(bound.denominator for bound in bounds))
    stride = round(period * (math.sqrt(5) - 1) / 2) or 1
    while math.gcd(stride, period) > 1:
        stride += 1
    begin = random.Random(f"{seed}/shares").randrange(period)
    shift = Fraction((begin + step * stride) % period, period)
    ends = [math.floor(bound + shift) for bound in bounds]
    return {name: end - start for name, (start, end) in zip(weights, pairwise(ends))}


def most(weights: Mapping[str, float], n: int) -> dict[str, int]:
    """The most of a step's ``n`` prompts that each source can have."""
    bounds = _bounds(weights, n)
    return {name: math.ceil(end - start) for name, (start, end) in zip(weights, pairwise(bounds))}


def _bounds(weights: Mapping[str, float], n: int) -> list[Fraction]:
    """The boundaries of the sources' intervals on [0, n]."""
    exact = [Fraction(str(weight)) for weight in weights.values()]  # 0.1 means exactly one tenth
    return [n * bound / sum(exact) for bound in accumulate(exact, initial=Fraction(0))]


def _of_epoch(questions: list[Question], step: int, n: int, seed: str) -> list[Question]:
    """The n questions of ``step``, if every step takes n and an epoch has len(questions) // n
    steps."""
    epoch, place = divmod(step, len(questions) // n)
    order = random.Random(f"{seed}/{epoch}").sample(range(len(questions)), len(questions))
    return [questions[i] for i in order[place * n : (place + 1) * n]]
