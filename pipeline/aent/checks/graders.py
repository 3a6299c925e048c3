"""Checks of a recipe's graders that are possible before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aent.recipe.graders import Code, LanguageModelJudge, ServiceSection
from aent.recipe.schema import Recipe, TaskSection
from aent.tasks.mixture import by_source
from aent.tasks.verifiers import READS_ANSWERS


def faults(recipe: Recipe) -> Iterator[str]:
    """One sentence per fault, naming the field. Imports no grader (``tasks.trial`` does)."""
    task = recipe.task
    if not task.graders and not all(source.graders for source in task.sources or (task,)):
        yield "task.graders is empty: nothing would score the answers"
        return
    # the other ranks wait that long without a sign of life
    patience = recipe.rollout.progress_timeout_s + recipe.rollout.engine.start_timeout_s
    others = f"rollout.progress_timeout_s + rollout.engine.start_timeout_s = {patience:g}"
    if task.judge_timeout_s >= patience:
        yield f"task.judge_timeout_s={task.judge_timeout_s:g} must be below {others}"
    # a list that several sources share, once
    yield from dict.fromkeys(_lists(task, patience, others))
    # if data_sources choose, each grader may be a question's first
    lists = [part.graders for part in by_source(task).values()]
    chosen = [g for one in lists for i, g in enumerate(one) if i == 0 or g.data_sources]
    silent = [grader for grader in chosen if grader.kind not in READS_ANSWERS]
    if recipe.control("majority_reward") is not None and silent:
        yield (
            "entropy_controls: majority_reward compares answers, but the first of task.graders "
            f"({silent[0].kind}) does not read answers: {', '.join(READS_ANSWERS)} do"
        )


def _code(field: str, grader: Code, judge_memory_gib: float) -> Iterator[str]:
    if grader.url is not None and grader.sandbox == "none":
        yield (
            f"{field}.sandbox: none has no meaning with a url, because programs run at the service"
        )
    if grader.url is None and grader.token_file is not None:
        yield f"{field}.token_file has no meaning without a url"
    if grader.url is None and grader.memory_gib > judge_memory_gib:
        yield (
            f"{field}.memory_gib={grader.memory_gib:g} is more than the limit of the grader's "
            f"process, which it inherits: task.judge_memory_gib={judge_memory_gib:g}"
        )


def _lists(task: TaskSection, patience: float, others: str) -> Iterator[str]:
    """Faults of the graders of every source."""
    for index, part in enumerate(by_source(task).values()):
        own = bool(task.sources and task.sources[index].graders)
        place = f"task.sources[{index}].graders" if own else "task.graders"
        kind = f"task.sources[{index}].kind" if task.sources else "task.kind"
        names = [grader.name for grader in part.graders]
        for number, grader in enumerate(part.graders):
            field = f"{place}[{number}]"
            if grader.weight == 0:
                yield f"{field}.weight is 0: {grader.name} would change nothing"
            if grader.name in names[:number]:
                yield f"{field}.name: {grader.name} appears twice: give each grader its own name"
            if grader.kind == "reasoning_gym" and part.kind == "file":
                yield f"{field}: reasoning_gym has no scorer for {kind}=file"
            if grader.kind == "python" and grader.group and grader.style == "verl":
                yield (
                    f"{field}.group has no meaning with style=verl: compute_score takes one answer"
                )
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


def _judge(field: str, judge: LanguageModelJudge) -> Iterator[str]:
    try:
        if re.compile(judge.parse).groups < 1:
            yield f"{field}.parse has no group (...) for the score: {judge.parse}"
    except re.error as error:
        yield f"{field}.parse is not a regular expression: {error}"
