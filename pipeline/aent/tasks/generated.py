"""Questions that reasoning-gym makes."""

from __future__ import annotations

import dataclasses
import difflib
import random
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aent.data.question import Question

if TYPE_CHECKING:
    from aent.recipe.schema import TaskSection


def questions(section: TaskSection, seed: int) -> Iterator[Question]:
    """Distinct ones, as many as the section wants or there are, each followed by its instruction.

    Raises ValueError as ``dataset``.
    """
    after = f"\n{section.instruction}" if section.instruction else ""
    for question in _distinct(dataset(section, seed), section.heldout + section.size):
        yield dataclasses.replace(question, prompt=question.prompt + after)


def dataset(section: TaskSection, seed: int) -> Any:
    """reasoning-gym's data set. Raises ValueError, naming the field, for a name or a configuration
    that it does not have or refuses."""
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
