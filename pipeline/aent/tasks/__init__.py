"""Questions with verifiable answers: which are trained on, which are held out, which come when.

This module imports nothing heavy: the judges' worker processes import it too.
"""

from __future__ import annotations

import dataclasses
import difflib
import random
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aent.data.question import Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aent.recipe.graders import Grader
    from aent.recipe.schema import TaskSection


@dataclass(frozen=True)
class Task:
    """Distinct questions; no held-out one is trained on."""

    name: str
    train: list[Question]
    heldout: list[Question]


def load(section: TaskSection, seed: int) -> Task:
    """Draw the task's distinct questions, deterministically in ``seed``.

    The held-out ones are the first drawn, so that ``size`` does not change them. There are fewer
    than ``size`` training questions where the task has fewer.

    Raises ValueError for an unknown data set or configuration key, a configuration that the data
    set refuses, a file that is not as it must be, answers that the graders cannot read, or fewer
    distinct questions than ``heldout`` + 1; FileNotFoundError where there is no such file.
    """
    questions = list(_file(section, seed) if section.kind == "file" else _generated(section, seed))
    if len(questions) <= section.heldout:
        what = _name(section) + (" with this config" if section.kind == "reasoning_gym" else "")
        raise ValueError(
            f"task.heldout: {what} has about {len(questions)} distinct "
            f"questions, too few to hold {section.heldout} out and train on another"
        )
    _check_graders(section, questions)
    return Task(_name(section), questions[section.heldout :], questions[: section.heldout])


def graders_of(section: TaskSection, question: Question) -> list[Grader]:
    """Those of the task's graders that judge responses to this question."""
    source = question.metadata.get("data_source")
    return [g for g in section.graders if not g.data_sources or source in g.data_sources]


def _check_graders(section: TaskSection, questions: list[Question]) -> None:
    """Raise ValueError for a question that nobody judges, or whose answer a grader cannot read."""
    from aent.tasks.code.programs import check_tests
    from aent.tasks.verifiers import as_number

    for question in questions:
        kinds = {grader.kind for grader in graders_of(section, question)}
        place = "" if question.row is None else f" in row {question.row}"
        if not kinds:
            source = question.metadata.get("data_source")
            raise ValueError(
                f"task.graders: none judges the data_source {source!r} that {_name(section)} "
                f"has{place}"
            )
        if "last_number" in kinds and as_number(question.answer) is None:
            raise ValueError(
                f"task.graders: last_number needs numbers for answers, {_name(section)} has "
                f"{question.answer[:100]!r}{place}"
            )
        if "code" in kinds:
            try:
                check_tests(question.answer)
            except ValueError as error:
                raise ValueError(
                    f"task.graders: code needs tests for answers, and the one that "
                    f"{_name(section)} has{place} {error}"
                ) from None
    sources = {str(question.metadata.get("data_source")) for question in questions}
    for grader in section.graders:
        if grader.data_sources and not sources & set(grader.data_sources):
            raise ValueError(
                f"task.graders: {grader.name} judges data_sources "
                f"{', '.join(grader.data_sources)}, of which {_name(section)} has none (it has "
                f"{', '.join(sorted(sources))})"
            )


def check_generated(section: TaskSection, seed: int) -> None:
    """Raise ValueError as ``load`` for the data set's name and configuration, without a question
    made. Imports reasoning-gym, a second of one core."""
    _dataset(section, seed)


def without_long_prompts(task: Task, length: Callable[[Question], int], limit: int) -> Task:
    """The task without questions whose prompt has more than ``limit`` tokens (``length`` counts).

    Raises ValueError if no training question is left.
    """

    everyone = [*task.train, *task.heldout]
    long = {q.index for q in everyone if length(q) > limit}
    return without(task, long, f"rollout.max_prompt_tokens={limit} is too few for every one")


def without(task: Task, left_out: set[int], why: str) -> Task:
    """The task without the questions of these indices.

    Raises ValueError, with the reason, if no training question is left.
    """

    def kept(questions: list[Question]) -> list[Question]:
        return [q for q in questions if q.index not in left_out]

    rest = Task(task.name, kept(task.train), kept(task.heldout))
    if not rest.train:
        raise ValueError(f"{task.name} has no training question left: {why}")
    return rest


def questions_for_step(task: Task, step: int, n: int, seed: int) -> list[Question]:
    """The ``n`` distinct training questions of ``step`` (from 0): a function of nothing else.

    Every epoch shuffles anew and has len(train) // n steps; its remainder is left out, so that no
    step has a question twice. Raises ValueError if there are fewer than ``n`` questions.
    """
    if n > len(task.train):
        raise ValueError(
            f"rollout.prompts_per_step={n}, but the task has {len(task.train)} training questions"
        )
    epoch, place = divmod(step, len(task.train) // n)
    order = random.Random(f"{seed}/{epoch}").sample(range(len(task.train)), len(task.train))
    return [task.train[i] for i in order[place * n : (place + 1) * n]]


def replacements_for_step(task: Task, step: int, n: int, seed: int) -> Iterator[Question]:
    """The training questions that are not among the ``n`` of ``step``, in an order of its own: they
    stand in for questions that teach nothing. A function of nothing else, like the step's own, so
    that a step repeated after a stop repeats them; other steps of the epoch may have them too.
    """
    taken = {q.index for q in questions_for_step(task, step, n, seed)}
    order = random.Random(f"{seed}/{step}/replacements").sample(task.train, len(task.train))
    return (q for q in order if q.index not in taken)


def _name(section: TaskSection) -> str:
    return str(section.path) if section.kind == "file" else section.name


def _file(section: TaskSection, seed: int) -> list[Question]:
    """The file's questions in an order of the seed's; each keeps its place in the file as index."""
    from aent.runtime.environment import data_path
    from aent.tasks import files

    assert section.path is not None  # checks.recipe
    questions = files.questions(data_path(section.path), section.instruction, section.columns)
    random.Random(f"file/{seed}").shuffle(questions)
    return questions[: section.heldout + section.size]


def _generated(section: TaskSection, seed: int) -> Iterator[Question]:
    after = f"\n{section.instruction}" if section.instruction else ""
    for question in _distinct(_dataset(section, seed), section.heldout + section.size):
        yield dataclasses.replace(question, prompt=question.prompt + after)


def _dataset(section: TaskSection, seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a package that reasoning-gym imports
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    if section.name not in DATASETS:
        nearest = _nearest(section.name, DATASETS)
        raise ValueError(f"task.name: reasoning-gym has no data set {section.name!r}{nearest}")
    keys = {f.name for f in dataclasses.fields(DATASETS[section.name][1])} - {"seed", "size"}
    for key in section.config:
        if key not in keys:
            raise ValueError(
                f"task.config: {section.name} has no key {key!r}{_nearest(key, keys)} "
                f"(it has {', '.join(sorted(keys))})"
            )
    # item i of reasoning-gym comes from seed + i: neighbouring seeds must not be neighbours there
    mixed = random.Random(f"{section.name}/{seed}").getrandbits(31)
    try:
        return reasoning_gym.create_dataset(
            section.name, seed=mixed, size=100 * (section.size + section.heldout), **section.config
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"task.config: {section.name} refuses {section.config}: {error}"
        ) from error


def _distinct(dataset: Any, wanted: int) -> Iterator[Question]:
    """Questions of different text, until ``wanted``, or until new ones have become rare."""
    seen: set[str] = set()
    misses = 0  # in a row
    for entry in dataset:
        text = entry["question"].strip()
        if text in seen:
            misses += 1
            if misses > max(200, 10 * len(seen)):
                return
            continue
        yield Question(len(seen), text, str(entry["answer"]), entry["metadata"])
        misses = 0
        seen.add(text)
        if len(seen) == wanted:
            return


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""
