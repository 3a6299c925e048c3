"""``aent data check FILE``: what a file of questions contains, and what a run would use of it."""

from __future__ import annotations

import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aent.data.question import Question
from aent.evaluation import suites
from aent.orchestrator.questions import load_task
from aent.recipe.schema import Recipe, TaskSection
from aent.runtime.environment import data_path
from aent.tasks import files, trial
from aent.tasks.judge import JudgePool
from aent.tasks.mixture import by_source

GRAM = 13  # consecutive words that two texts share: GPT-3's measure (arXiv 2005.14165, appendix C)
SHOWN = 5  # rows that are named


def of_file(path: Path, recipe: Recipe | None, data: Path) -> Iterator[str]:
    """Lines about a file or a data set's folder: rows, questions, data sources, and overlap with
    the suites in ``data``. With a recipe that will train on it, also prompts and what is left out,
    by the run's own code. If the recipe has sources, the one that names the file is used.

    Raises OSError or ValueError with one sentence for a file that a run would refuse.
    """
    part = TaskSection() if recipe is None else _part_of(path, recipe.task)
    found = files.questions(path, None, part.columns, part.split, part.subset)
    count = len(files.rows(path, part.split, part.subset))
    yield f"{path}: {count} rows, {len(found)} questions ({count - len(found)} rows repeat one)"
    if alike := _alike(found):
        yield f"{len(alike)} differ from an earlier one only in case or punctuation{_rows(alike)}"
    sources = Counter(str(q.metadata["data_source"]) for q in found if "data_source" in q.metadata)
    if sources:
        yield f"data_source: {', '.join(f'{name} {n}' for name, n in sources.most_common())}"
    yield from _overlaps(found, data)
    if recipe is not None:
        yield from _as_task(path, part, recipe, len(found))


def _part_of(path: Path, task: TaskSection) -> TaskSection:
    """The task's source that has the file. Raises ValueError if none has."""
    if not task.sources:
        return task
    places = {str(part.path): part for part in by_source(task).values() if part.kind == "file"}
    found = [part for place, part in places.items() if _same(data_path(place), path)]
    if not found:
        raise ValueError(
            f"{path} is none of the recipe's task.sources (their files: "
            f"{', '.join(places) or 'none'})"
        )
    return found[0]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _alike(found: list[Question]) -> list[Question]:
    """Questions with the same words as an earlier one."""
    seen: set[tuple[str, ...]] = set()
    again = []
    for question in found:
        words = tuple(_words(_text(question)))
        if words in seen:
            again.append(question)
        seen.add(words)
    return again


def _overlaps(found: list[Question], data: Path) -> Iterator[str]:
    """A text of fewer than ``GRAM`` words is compared as a whole."""
    for name, suite in suites.SUITES.items():
        if suite.dataset is not None:
            continue
        try:
            asked = files.questions(suites.file(name, data))
        except FileNotFoundError:
            continue
        there = {gram for question in asked for gram in _grams(_text(question))}
        both = [q for q in found if not there.isdisjoint(_grams(_text(q)))]
        yield f"{name}: {len(both)} questions share {GRAM} consecutive words with it{_rows(both)}"


def _text(question: Question) -> str:
    """All text before the answer."""
    return "\n".join([*(text for _, text in question.earlier), question.prompt])


def _words(text: str) -> list[str]:
    """Numbers, words and arithmetic signs, in lower case: 3 + 4 differs from 3 - 4."""
    return re.findall(r"\w+|[-+*/^=<>]", text.casefold())


def _grams(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return set(zip(*(words[i:] for i in range(min(GRAM, len(words))))))


def _as_task(path: Path, part: TaskSection, recipe: Recipe, count: int) -> Iterator[str]:
    """Raises ValueError as ``load_task``."""
    from aent.models import model_source, tokenizer  # late: imports NeMo

    whole = {"kind": "file", "path": str(path), "heldout": 0, "size": count, "curriculum": None}
    rollout = recipe.rollout.model_copy(update={"prompts_per_step": 1})
    task = part.model_copy(update=whole)
    recipe = recipe.model_copy(update={"task": task, "rollout": rollout})
    words = tokenizer.load(recipe.model, model_source.resolve(recipe.model), task.template)
    with JudgePool(task) as judge:
        kept = load_task(recipe, words, judge, lambda: None).train
    sys.stdout.flush()
    lengths = sorted(len(words.chat_prompt(*q.turns(task.system_prompt))) for q in kept)
    late = lengths[min(len(lengths) - 1, 95 * len(lengths) // 100)]
    yield (
        f"{len(kept)} questions are left; their prompts have {lengths[0]} to {lengths[-1]} tokens, "
        f"median {statistics.median(lengths):g}, 95% up to {late}"
    )
    for fault in trial.faults(task, kept, recipe.rollout.samples_per_prompt):
        raise ValueError(fault)


def _rows(questions: list[Question]) -> str:
    rows = [str(question.row) for question in questions[:SHOWN]]
    more = ", ..." if len(questions) > SHOWN else ""
    return f" (row {', '.join(rows)}{more})" if rows else ""
