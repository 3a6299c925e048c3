"""Tries custom functions and services before a run starts: imports them and calls them once. Also
hashes their files, and the files of questions."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.graders import Code, LanguageModelJudge, PythonFunction, ServiceSection
from aent.recipe.schema import TaskSection
from aent.runtime.environment import data_path
from aent.tasks import files, functions
from aent.tasks.judge import JudgePool
from aent.tasks.mixture import appointed, by_source, graders_of, of_source

TRIAL_S = 10.0  # seconds that a service has for its trial answer


def fingerprints(section: TaskSection) -> dict[str, str]:
    """SHA-256 of the file of each of the task's functions and rubrics, by name."""
    found = {}
    for grader in (judge.grader for judge in appointed(section)):
        if isinstance(grader, PythonFunction):
            name, path = grader.function, functions.source_of(grader.function)
        elif isinstance(grader, LanguageModelJudge):
            name, path = grader.rubric, data_path(grader.rubric)
        else:
            continue
        if path is not None and path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def data_fingerprints(section: TaskSection) -> dict[str, str]:
    """SHA-256 of each of the task's files of questions; a folder's files are hashed together."""
    found = {}
    for part in by_source(section).values():
        if part.kind != "file" or part.path is None:
            continue
        path, sums = data_path(part.path), hashlib.sha256()
        for file in files.files_of(path, part.split, part.subset):
            with file.open("rb") as content:
                sums.update(hashlib.file_digest(content, "sha256").digest())
        which = ", ".join(filter(None, [part.split, part.subset])) if path.is_dir() else ""
        found[f"{part.path} ({which})" if which else part.path] = sums.hexdigest()
    return found


def tried(section: TaskSection) -> list[PythonFunction | ServiceSection | Code]:
    """The graders that are custom, or need something that a machine may lack."""
    graders = [judge.grader for judge in appointed(section)]
    return [g for g in graders if isinstance(g, PythonFunction | ServiceSection | Code)]


def faults(section: TaskSection, questions: Sequence[Question], samples: int) -> Iterator[str]:
    """One sentence for each fault, for each source: a function cannot be imported, does not accept
    its arguments, or needs a column that a question lacks; a function or service returns no reward
    for the first question's answer as a response (given ``samples`` times to a function of groups);
    or a sandbox cannot be created here. What a sandbox lacks is printed."""
    for index, (name, part) in enumerate(by_source(section).items()):
        asked = [replace(q, source="") for q in questions if q.source == name]
        for fault in _of_one(part, asked, samples):
            yield of_source(fault, index) if section.sources else fault


def _of_one(section: TaskSection, questions: Sequence[Question], samples: int) -> Iterator[str]:
    own = tuple(
        # here a service must already be running
        g.model_copy(update={"timeout_s": min(g.timeout_s, TRIAL_S)})
        if isinstance(g, ServiceSection)
        else g
        for g in tried(section)
    )
    if not own:
        return
    questions = sorted(questions, key=lambda question: question.row or 0)
    asked = section.model_copy(update={"graders": own, "judge_processes": 1})
    of_each = [[q for q in questions if grader in graders_of(asked, q)] for grader in own]
    try:
        with JudgePool(asked) as judge:
            for grader, known in zip(asked.graders, judge.facts()):
                for lack in known.lacks:
                    print(f"aent: task.graders: {grader.name}: {lack}", file=sys.stderr)
            missing = [
                fault
                for grader, known, chosen in zip(own, judge.facts(), of_each)
                if isinstance(grader, PythonFunction)
                for fault in _missing(grader, known.columns, section, chosen)
            ]
            groups = any(isinstance(grader, PythonFunction) and grader.group for grader in own)
            yield from missing or _failures(judge, section, of_each, samples if groups else 1)
    except (ValueError, RuntimeError, TimeoutError) as error:
        yield str(error)


def _failures(
    judge: JudgePool, section: TaskSection, of_each: list[list[Question]], samples: int
) -> Iterator[str]:
    """Graders that fail on the first of their own questions."""
    told: set[str] = set()
    for first in {questions[0].index: questions[0] for questions in of_each if questions}.values():
        response = Response(first.answer, tokens=1)
        verdict = judge.judge([first] * samples, [response] * samples)[0]
        for grade in verdict.grades:
            if grade.error and grade.name not in told:
                told.add(grade.name)
                late = (
                    f" (task.judge_timeout_s={section.judge_timeout_s:g}; services: {TRIAL_S:g} s)"
                )
                yield (
                    f"task.graders: {grade.name} returns no reward for the answer of "
                    f"{_place(section, first)} as a response: {grade.error}"
                    f"{late if grade.error == 'timeout' else ''}"
                )


def _missing(
    grader: PythonFunction,
    columns: Sequence[str],
    section: TaskSection,
    questions: Sequence[Question],
) -> Iterator[str]:
    """For each column that the function needs, the first question without it."""
    for column in columns:
        if column == "data_source" and section.kind != "file":
            continue  # the data set's name is used instead
        lacking = next((q for q in questions if column not in q.metadata), None)
        if lacking is not None:
            yield (
                f"task.graders: {grader.name}: {grader.function} ({grader.style}) needs the column "
                f"{column!r}, but {_place(section, lacking)} has none (it has "
                f"{', '.join(map(repr, ['question', 'answer', *lacking.metadata]))})"
            )


def _place(section: TaskSection, question: Question) -> str:
    if question.row is None:
        return f"question {question.index} of {section.name}"
    return f"row {question.row} of {section.path}"
