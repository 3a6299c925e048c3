"""Questions with verifiable answers, split into training and held-out questions. ``tasks.choice``
chooses those of each step.

This module imports nothing heavy, because the graders' worker processes import it too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from aent.data.question import Question
from aent.tasks.mixture import by_source, graders_of, of_source, title

if TYPE_CHECKING:
    from aent.recipe.graders import Grader
    from aent.recipe.schema import TaskSection


@dataclass(frozen=True)
class Task:
    """Distinct questions; no held-out question is trained on."""

    name: str
    train: list[Question]
    heldout: list[Question]
    weights: dict[str, float] = field(default_factory=lambda: {"": 1.0})  # by source, in order
    notes: tuple[str, ...] = ()  # one sentence for each part of the data that is not used

    def of(self, source: str) -> list[Question]:
        """The source's training questions."""
        return [question for question in self.train if question.source == source]


def load(section: TaskSection, seed: int) -> Task:
    """Draw the task's distinct questions, deterministically by ``seed``.

    The held-out questions of each source are drawn first, so that ``size`` does not change them. If
    a source has fewer than ``size`` training questions, all are used. A question in two sources
    belongs to the first.

    Raises ValueError naming the field for an unknown data set or configuration key, a configuration
    that the data set refuses, an invalid file, answers that the graders cannot read, or fewer
    distinct questions than ``heldout`` + 1; OSError if there is no such file.
    """
    if not section.sources:
        return _load_one(section, seed, "", set(), 0)
    loaded: list[Task] = []
    seen: set[tuple] = set()
    first = 0
    for index, (name, part) in enumerate(by_source(section).items()):
        try:
            loaded.append(_load_one(part, seed, name, seen, first))
            if section.sources[index].graders:
                _check_used(part.graders, [*loaded[-1].train, *loaded[-1].heldout])
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, ValueError) else OSError
            raise kind(of_source(str(error), index)) from error
        questions = [*loaded[-1].train, *loaded[-1].heldout]
        seen |= {_bare(question, part) for question in questions}
        first = 1 + max(question.index for question in questions)
    heirs = [task for task, source in zip(loaded, section.sources) if not source.graders]
    if heirs:
        _check_used(section.graders, [q for task in heirs for q in task.train + task.heldout])
    return Task(
        title(section),
        [question for task in loaded for question in task.train],
        [question for task in loaded for question in task.heldout],
        {source.name: source.weight for source in section.sources},
        tuple(note for task in loaded for note in task.notes),
    )


def _load_one(section: TaskSection, seed: int, source: str, seen: set[tuple], first: int) -> Task:
    """The task of one source, with questions numbered from ``first``, without those already
    ``seen`` in other sources."""
    everyone = _drawn(section, seed)
    fresh = [q for q in everyone if _bare(q, section) not in seen]
    questions = fresh[: section.heldout + section.size]
    if len(questions) <= section.heldout:
        what = title(section) + (" with this config" if section.kind == "reasoning_gym" else "")
        others = " that no earlier source has" if len(fresh) < len(everyone) else ""
        raise ValueError(
            f"task.heldout: {what} has about {len(questions)} distinct questions{others}, "
            f"too few to hold {section.heldout} out and train on another"
        )
    _check_judged(section, questions)
    if not source:
        _check_used(section.graders, questions)
    notes = []
    if len(fresh) < len(everyone):
        notes.append(
            f"{len(everyone) - len(fresh)} questions of {source} are also in an earlier source "
            f"and are "
            "left out"
        )
    if section.kind == "file" and len(questions) < len(fresh):
        where = f"{source}: size" if source else "task.size"
        notes.append(
            f"{where}={section.size}: {len(fresh) - len(questions)} of the {len(fresh)} questions "
            f"of {section.path} are not used"
        )
    drawn = [
        replace(q, index=first + q.index, source=source, system=_system(q, section, source))
        for q in questions
    ]
    held = section.heldout
    return Task(title(section), drawn[held:], drawn[:held], notes=tuple(notes))


def _bare(question: Question, section: TaskSection) -> tuple:
    """The question without its source's instruction and system turn, so that a question held out in
    one source is not trained on in another, in other words."""
    return question.earlier, question.prompt.removesuffix(f"\n{section.instruction}")


def _system(question: Question, section: TaskSection, source: str) -> str | None:
    """The question's own system turn; a source's system turn replaces the recipe's."""
    return section.system_prompt if source and question.system is None else question.system


def _drawn(section: TaskSection, seed: int) -> list[Question]:
    """A file's questions in an order given by the seed, each with its position in the file as
    index; or questions generated by reasoning-gym."""
    if section.kind == "reasoning_gym":
        from aent.tasks import generated  # late: the graders' processes do not generate questions

        return list(generated.questions(section, seed))
    from aent.runtime.environment import data_path
    from aent.tasks import files

    assert section.path is not None  # checks.task
    questions = files.questions(
        data_path(section.path),
        section.instruction,
        section.columns,
        section.split,
        section.subset,
    )
    random.Random(f"file/{seed}").shuffle(questions)
    return questions


def _check_judged(section: TaskSection, questions: list[Question]) -> None:
    """Raise ValueError for a question that no grader scores, or whose answer a grader cannot
    read."""
    from aent.tasks.code.programs import check_tests
    from aent.tasks.verifiers import as_number

    for question in questions:
        kinds = {grader.kind for grader in graders_of(section, question)}
        place = "" if question.row is None else f" in row {question.row}"
        if not kinds:
            source = question.metadata.get("data_source")
            raise ValueError(
                f"task.graders: none scores the data_source {source!r} that {title(section)} "
                f"has{place}"
            )
        if "last_number" in kinds and as_number(question.answer) is None:
            raise ValueError(
                f"task.graders: last_number needs numbers for answers, {title(section)} has "
                f"{question.answer[:100]!r}{place}"
            )
        if "code" in kinds:
            try:
                check_tests(question.answer)
            except ValueError as error:
                raise ValueError(
                    f"task.graders: code needs tests for answers, and the one that "
                    f"{title(section)} has{place} {error}"
                ) from None


def _check_used(graders: Sequence[Grader], questions: list[Question]) -> None:
    """Raise ValueError for a grader of data sources that no question has."""
    sources = {str(question.metadata.get("data_source")) for question in questions}
    for grader in graders:
        if grader.data_sources and not sources & set(grader.data_sources):
            raise ValueError(
                f"task.graders: {grader.name} scores data_sources "
                f"{', '.join(grader.data_sources)}, but there are only "
                f"{', '.join(sorted(sources))}"
            )


def check_generated(section: TaskSection, seed: int) -> None:
    """Raise ValueError as ``load`` for the data set's name and configuration, without generating
    questions. Imports reasoning-gym, which takes a second of one core."""
    from aent.tasks import generated

    for index, part in enumerate(by_source(section).values()):
        if part.kind == "reasoning_gym":
            try:
                generated.dataset(part, seed)
            except ValueError as error:
                raise ValueError(
                    of_source(str(error), index) if section.sources else str(error)
                ) from error


def without_long_prompts(task: Task, length: Callable[[Question], int], limit: int) -> Task:
    """The task without questions whose prompt has more than ``limit`` tokens (``length`` counts).

    Raises ValueError if a source has no training question left.
    """

    everyone = [*task.train, *task.heldout]
    long = {q.index for q in everyone if length(q) > limit}
    return without(
        task, long, f"every question has more than rollout.max_prompt_tokens={limit} tokens"
    )


def without(task: Task, left_out: set[int], why: str) -> Task:
    """The task without the questions with these indices.

    Raises ValueError with the reason if a source has no training question left.
    """

    def kept(questions: list[Question]) -> list[Question]:
        return [q for q in questions if q.index not in left_out]

    rest = replace(task, train=kept(task.train), heldout=kept(task.heldout))
    there = Counter(question.source for question in rest.train)
    for source in task.weights:
        if not there[source]:
            which = f"task.sources: {source}" if source else task.name
            raise ValueError(f"{which} has no training question left: {why}")
    return rest
