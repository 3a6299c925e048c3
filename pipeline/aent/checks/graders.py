"""What is wrong with a recipe's graders, as far as it can be known before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aent.recipe.graders import Code, LanguageModelJudge, ServiceSection
from aent.recipe.schema import Recipe
from aent.tasks.verifiers import READS_ANSWERS


def faults(recipe: Recipe) -> Iterator[str]:
    """A sentence for each, naming the field; nothing is imported (``tasks.trial`` does)."""
    task = recipe.task
    if not task.graders:
        yield "task.graders is empty: nobody says what an answer is worth"
        return
    # for which the other ranks wait without a sign of life
    patience = recipe.rollout.progress_timeout_s + recipe.rollout.engine.start_timeout_s
    others = f"rollout.progress_timeout_s + rollout.engine.start_timeout_s = {patience:g}"
    if task.judge_timeout_s >= patience:
        yield f"task.judge_timeout_s={task.judge_timeout_s:g} must be below {others}"
    names = [grader.name for grader in task.graders]
    for index, grader in enumerate(task.graders):
        field = f"task.graders[{index}]"
        if grader.weight == 0:
            yield f"{field}.weight is 0: {grader.name} would change nothing"
        if grader.name in names[:index]:
            yield f"{field}.name: {grader.name} stands there twice: give each grader its own"
        if grader.kind == "reasoning_gym" and task.kind == "file":
            yield f"{field}: reasoning_gym has no scorer for task.kind=file"
        if grader.kind == "python" and grader.group and grader.style == "verl":
            yield f"{field}.group has no meaning with style=verl: compute_score takes one answer"
        if isinstance(grader, ServiceSection | Code):
            longest = grader.limit_s(task.judge_timeout_s)
            if longest >= patience:
                beside = longest - grader.timeout_s
                more = f" (+ {beside:g} s around the program)" if beside else ""
                yield f"{field}.timeout_s={grader.timeout_s:g}{more} must be below {others}"
        if isinstance(grader, Code):
            yield from _code(field, grader, task.judge_memory_gib)
        if isinstance(grader, LanguageModelJudge):
            yield from _judge(field, grader)
    # where data_sources choose, each may be a question's first
    chosen = [i for i, grader in enumerate(task.graders) if i == 0 or grader.data_sources]
    silent = [task.graders[i] for i in chosen if task.graders[i].kind not in READS_ANSWERS]
    if recipe.control("majority_reward") is not None and silent:
        yield (
            "entropy_controls: majority_reward compares answers, and a first one of task.graders "
            f"({silent[0].kind}) does not say what an answer is: {', '.join(READS_ANSWERS)} do"
        )


def _code(field: str, grader: Code, judge_memory_gib: float) -> Iterator[str]:
    if grader.url is not None and grader.sandbox == "none":
        yield f"{field}.sandbox: none has no meaning with a url: programs run at the service"
    if grader.url is None and grader.token_file is not None:
        yield f"{field}.token_file has no meaning without a url"
    if grader.url is None and grader.memory_gib > judge_memory_gib:
        yield (
            f"{field}.memory_gib={grader.memory_gib:g} is more than the judge's process may have, "
            f"whose limit it inherits: task.judge_memory_gib={judge_memory_gib:g}"
        )


def _judge(field: str, judge: LanguageModelJudge) -> Iterator[str]:
    try:
        if re.compile(judge.parse).groups < 1:
            yield f"{field}.parse has no group (...) for the score: {judge.parse}"
    except re.error as error:
        yield f"{field}.parse is no regular expression: {error}"
