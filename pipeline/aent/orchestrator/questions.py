"""The questions of a run, of its task and its suites, that fit the engines' limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from aent import tasks
from aent.data.question import Question
from aent.evaluation import suites
from aent.models.tokenizer import Tokenizer
from aent.recipe.schema import Recipe, TaskSection
from aent.runtime.log import log
from aent.tasks import choice
from aent.tasks.judge import JudgePool
from aent.tasks.verifiers import as_number


def load_task(
    recipe: Recipe, words: Tokenizer, judge: JudgePool, progress: Callable[[], None]
) -> tasks.Task:
    """The recipe's task, without questions that are too long or have no readable reference.

    Raises ValueError if a source has fewer training questions left than a step may ask of it.
    """
    task = tasks.load(recipe.task, recipe.seed)
    for note in task.notes:
        log.info(f"aent: {note}")
    task = _without_long(task, recipe, words, progress)
    # of files; for last_number, ``tasks.load`` already refuses them
    task = _without_unreadable(task, recipe.task, judge, progress)
    choice.check(task, recipe.rollout.prompts_per_step)
    return task


def _without_long(
    task: tasks.Task, recipe: Recipe, words: Tokenizer, progress: Callable[[], None]
) -> tasks.Task:
    def length(question: Question) -> int:
        progress()
        return len(words.chat_prompt(*question.turns(recipe.task.system_prompt)))

    progress()
    kept = tasks.without_long_prompts(task, length, recipe.rollout.max_prompt_tokens)
    left = {q.index for q in (*kept.train, *kept.heldout)}
    for name, dropped in _by_source(
        task, [q for q in (*task.train, *task.heldout) if q.index not in left]
    ):
        log.info(
            f"aent: {len(dropped)} questions of {name} have more than rollout.max_prompt_tokens="
            f"{recipe.rollout.max_prompt_tokens} tokens and are left out"
        )
    return kept


def _without_unreadable(
    task: tasks.Task, section: TaskSection, judge: JudgePool, progress: Callable[[], None]
) -> tasks.Task:
    """The task without the questions of files whose reference math-verify cannot read."""
    everyone = [*task.heldout, *task.train]
    questions = [
        q
        for q in everyone
        if q.row is not None
        and any(grader.kind == "math_verify" for grader in tasks.graders_of(section, q))
        and as_number(q.answer) is None  # a number can be read
    ]
    bad: list[Question] = []
    for first in range(0, len(questions), 100):
        bad += judge.unreadable(questions[first : first + 100], "math_verify")
        progress()
    for name, dropped in _by_source(task, bad):
        rows = ", ".join(str(q.row) for q in dropped[:5]) + (", ..." if len(dropped) > 5 else "")
        log.info(
            f"aent: {len(dropped)} questions of {name} have an answer that math_verify "
            f"(task.graders) cannot read (row {rows}) and are left out"
        )
    left_out = {q.index for q in bad}
    return tasks.without(task, left_out, "math_verify (task.graders) reads no answer")


def _by_source(
    task: tasks.Task, questions: Sequence[Question]
) -> Iterator[tuple[str, list[Question]]]:
    """(the source's name, its questions) of each source that has any of them."""
    for source in task.weights:
        own = [question for question in questions if question.source == source]
        if own:
            yield source or task.name, own


def load_suites(recipe: Recipe, words: Tokenizer) -> dict[str, list[Question]]:
    """The questions of each of ``evaluation.suites``, in the form of the prompts trained on.

    Raises ValueError if one is longer than the engines allow.
    """
    return {name: _suite(name, recipe, words) for name in recipe.evaluation.suites}


def _suite(name: str, recipe: Recipe, words: Tokenizer) -> list[Question]:
    suite = suites.find(name).model_copy(update={"instruction": recipe.task.instruction})
    questions = suites.questions(suite)
    longest = max(len(words.chat_prompt(*q.turns(recipe.task.system_prompt))) for q in questions)
    if longest > recipe.rollout.max_prompt_tokens:
        raise ValueError(
            f"evaluation.suites: {name} has a question of {longest} tokens, more than "
            f"rollout.max_prompt_tokens={recipe.rollout.max_prompt_tokens}"
        )
    return questions
