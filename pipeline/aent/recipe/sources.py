"""The sections about questions: columns of a file, the sources of a mixture, a curriculum
(docs/data.md)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from aent.recipe.graders import NAME, Grader
from aent.recipe.section import Section


class ColumnsSection(Section):
    """The columns of a file of questions; a dot selects a key in a column of mappings, as in
    verl's ``reward_model.ground_truth``."""

    question: str = "question"
    """Column of the prompts: texts, or lists of messages (a system message, earlier turns, the
    user's)."""
    answer: str = "answer"
    """Column of the reference answers."""


class SourceSection(Section):
    """One of a mixture's sources."""

    name: str = Field(pattern=NAME)
    """Name in metrics."""
    weight: float = Field(1.0, gt=0)
    """Its part of a step's prompts is weight / sum of the weights."""
    kind: Literal["reasoning_gym", "file"] = "file"
    """As task.kind."""
    dataset: str | None = None
    """reasoning_gym: the data set; default: name."""
    config: dict[str, Any] = Field({})
    """As task.config."""
    path: str | None = None
    """As task.path."""
    split: str = "train"
    """As task.split."""
    subset: str | None = None
    """As task.subset."""
    columns: ColumnsSection = ColumnsSection()
    """As task.columns."""
    size: int = Field(1000, ge=1)
    """As task.size."""
    heldout: int = Field(64, ge=0)
    """As task.heldout."""
    system_prompt: str | None = None
    """System message; default: the task's."""
    instruction: str | None = None
    """Appended to every question; default: the task's."""
    graders: tuple[Grader, ...] = ()
    """Graders of its questions; default: the task's."""


class CurriculumSection(Section):
    """The order of the questions, by the success that each had when it was last asked: the share of
    its responses that were right."""

    low: float = Field(0.0, ge=0, le=1)
    """Lowest success with which a question is asked again; the others rest."""
    high: float = Field(1.0, ge=0, le=1)
    """Highest success with which a question is asked again."""
    retry_after: int | None = Field(None, ge=1)
    """Steps that a resting question rests; default: until the end."""
    order: Literal["shuffled", "easy_first", "hard_first"] = "shuffled"
    """Order among questions asked equally often."""
    replay: float = Field(0.0, ge=0, le=1)
    """Share of a step's prompts that were asked before, as long as there are new ones."""
