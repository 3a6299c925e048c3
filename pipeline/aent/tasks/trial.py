"""Functions of one's own, before a run starts: imported and called once; their files' hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.graders import PythonFunction
from aent.recipe.schema import TaskSection
from aent.tasks import functions
from aent.tasks.judge import JudgePool


def fingerprints(section: TaskSection) -> dict[str, str]:
    """SHA-256 of the file of each of the task's functions, by function."""
    found = {}
    for grader in section.graders:
        if isinstance(grader, PythonFunction) and (path := functions.source_of(grader.function)):
            found[grader.function] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def faults(section: TaskSection, questions: Sequence[Question], samples: int) -> Iterator[str]:
    """A sentence for each of the task's functions that cannot be imported, does not take what it
    gets, needs a column that a question has not, or has no reward for the answer of the first
    question, given as a response (``samples`` times to a function of groups)."""
    own = tuple(g for g in section.graders if isinstance(g, PythonFunction))
    if not own:
        return
    asked = section.model_copy(update={"graders": own, "judge_processes": 1})
    questions = sorted(questions, key=lambda question: question.row or 0)
    first = questions[0]
    response = Response(first.answer, tokens=1)
    try:
        with JudgePool(asked) as judge:
            facts = judge.facts()
            missing = [
                fault
                for grader, known in zip(own, facts)
                for fault in _missing(grader, known.columns, section, questions)
            ]
            if missing:
                yield from missing
                return
            verdict = judge.judge([first] * samples, [response] * samples)[0]
    except (ValueError, RuntimeError, TimeoutError) as error:
        yield str(error)
        return
    for grader, grade in zip(own, verdict.grades):
        if grade.error:
            late = f" (task.judge_timeout_s={section.judge_timeout_s:g})"
            yield (
                f"task.graders: {grader.name}: {grader.function} has no reward for the answer of "
                f"{_place(section, first)} as a response: {grade.error}"
                f"{late if grade.error == 'timeout' else ''}"
            )


def _missing(
    grader: PythonFunction,
    columns: Sequence[str],
    section: TaskSection,
    questions: Sequence[Question],
) -> Iterator[str]:
    """The first question without a column that the function needs, for each such column."""
    for column in columns:
        if column == "data_source" and section.kind != "file":
            continue  # the data set's name stands for it
        lacking = next((q for q in questions if column not in q.metadata), None)
        if lacking is not None:
            yield (
                f"task.graders: {grader.name}: {grader.function} ({grader.style}) needs the column "
                f"{column!r}, and {_place(section, lacking)} has none (it has "
                f"{', '.join(map(repr, ['question', 'answer', *lacking.metadata]))})"
            )


def _place(section: TaskSection, question: Question) -> str:
    if question.row is None:
        return f"question {question.index} of {section.name}"
    return f"row {question.row} of {section.path}"
