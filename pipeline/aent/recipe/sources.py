"""The sections of what is asked: columns of a file, the sources of a mixture, a curriculum. What
they do: docs/data.md."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from aent.recipe.graders import NAME, Grader
from aent.recipe.section import Section


class ColumnsSection(Section):
    """The columns of a file of questions; a dot leads into a column of mappings, as in verl's
    ``reward_model.ground_truth``."""

    # texts, or messages: a user's, a system's before it or not, earlier turns between them or not
    question: str = "question"
    answer: str = "answer"


class SourceSection(Section):
    """One of a mixture's sources."""

    name: str = Field(pattern=NAME)  # its own, a part of its metrics' names
    weight: float = Field(1.0, gt=0)  # its part of a step's prompts is weight / sum of the weights
    kind: Literal["reasoning_gym", "file"] = "file"
    dataset: str | None = None  # reasoning_gym: the data set; default: ``name``
    config: dict[str, Any] = Field({})
    path: str | None = None
    split: str = "train"
    subset: str | None = None
    columns: ColumnsSection = ColumnsSection()
    size: int = Field(1000, ge=1)
    heldout: int = Field(64, ge=0)
    system_prompt: str | None = None  # default: the task's
    instruction: str | None = None  # default: the task's
    graders: tuple[Grader, ...] = ()  # default: the task's


class CurriculumSection(Section):
    """Which questions come when, by the success that each had when it was last asked: the share of
    its responses that were right."""

    # those with a success from low to high are asked again; the others rest
    low: float = Field(0.0, ge=0, le=1)
    high: float = Field(1.0, ge=0, le=1)
    retry_after: int | None = Field(None, ge=1)  # steps that they rest; None: for good
    # among those asked equally often
    order: Literal["shuffled", "easy_first", "hard_first"] = "shuffled"
    # share of a step's prompts that are questions asked before, while there are new ones
    replay: float = Field(0.0, ge=0, le=1)
