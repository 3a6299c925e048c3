"""``aent data check FILE``: what is in a file of questions, and what a run would make of it."""

from __future__ import annotations

import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from aent.data.question import Question
from aent.evaluation import suites
from aent.orchestrator.questions import load_task
from aent.recipe.schema import Recipe
from aent.tasks import files, trial
from aent.tasks.judge import JudgePool

GRAM = 13  # words in a row that two texts share: GPT-3's measure (arXiv 2005.14165, appendix C)
SHOWN = 5  # rows named


def of_file(path: Path, recipe: Recipe | None, data: Path) -> Iterator[str]:
    """Lines about the file: rows, questions, data sources, overlap with the suites in ``data``;
    with a recipe that is to learn from it, also prompts and what is left out (printed by the run's
    own code).

    Raises OSError or ValueError in one sentence for a file that a run would refuse.
    """
    found = files.questions(path, columns=None if recipe is None else recipe.task.columns)
    count = len(files.rows(path))
    yield f"{path}: {count} rows, {len(found)} questions ({count - len(found)} rows repeat one)"
    sources = Counter(str(q.metadata["data_source"]) for q in found if "data_source" in q.metadata)
    if sources:
        yield f"data_source: {', '.join(f'{name} {n}' for name, n in sources.most_common())}"
    yield from _overlaps(found, data)
    if recipe is not None:
        yield from _as_task(path, recipe, len(found))


def _overlaps(found: list[Question], data: Path) -> Iterator[str]:
    for name, suite in suites.SUITES.items():
        if suite.dataset is not None:
            continue
        try:
            asked = files.questions(suites.file(name, data))
        except FileNotFoundError:
            continue
        there = {gram for question in asked for gram in _grams(question.prompt)}
        exactly = {question.prompt for question in asked}
        both = [q for q in found if q.prompt in exactly or not there.isdisjoint(_grams(q.prompt))]
        yield f"{name}: {len(both)} questions share {GRAM} words in a row with it{_rows(both)}"


def _grams(text: str) -> Iterable[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return zip(*(words[i:] for i in range(GRAM)))


def _as_task(path: Path, recipe: Recipe, count: int) -> Iterator[str]:
    """Raises ValueError as ``load_task``."""
    from aent.models import model_source, tokenizer  # late: imports NeMo

    whole = {"kind": "file", "path": str(path), "heldout": 0, "size": count}
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update=whole)})
    words = tokenizer.load(recipe.model, model_source.resolve(recipe.model), recipe.task.template)
    with JudgePool(recipe.task) as judge:
        kept = load_task(recipe, words, judge, lambda: None).train
    sys.stdout.flush()
    prompt = recipe.task.system_prompt
    lengths = sorted(len(words.chat_prompt(*question.turns(prompt))) for question in kept)
    late = lengths[min(len(lengths) - 1, 95 * len(lengths) // 100)]
    yield (
        f"{len(kept)} questions are left; their prompts have {lengths[0]} to {lengths[-1]} tokens, "
        f"{statistics.median(lengths):g} in the median, {late} at 95%"
    )
    for fault in trial.faults(recipe.task, kept, recipe.rollout.samples_per_prompt):
        raise ValueError(fault)


def _rows(questions: list[Question]) -> str:
    rows = [str(question.row) for question in questions[:SHOWN]]
    more = ", ..." if len(questions) > SHOWN else ""
    return f" (row {', '.join(rows)}{more})" if rows else ""
