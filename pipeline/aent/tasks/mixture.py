"""A task's sources, one or several, and which graders score which questions.

Imports nothing heavy, because the graders' processes import it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aent.data.question import Question

if TYPE_CHECKING:
    from aent.recipe.graders import Grader
    from aent.recipe.schema import TaskSection
    from aent.recipe.sources import SourceSection


def by_source(section: TaskSection) -> dict[str, TaskSection]:
    """The task of each source alone, by the source's name; if there are no sources, the task itself
    under ""."""
    if not section.sources:
        return {"": section}
    return {source.name: part_of(section, source) for source in section.sources}


def part_of(section: TaskSection, source: SourceSection) -> TaskSection:
    """The task of this source alone, with the task's own values for what the source does not
    set."""
    same = ("kind", "config", "path", "split", "subset", "columns", "size", "heldout")
    own = {field: getattr(source, field) for field in same}
    for field in ("system_prompt", "instruction"):
        given = getattr(source, field)
        own[field] = getattr(section, field) if given is None else given
    own |= {"name": source.dataset or source.name, "graders": source.graders or section.graders}
    return section.model_copy(update=own | {"sources": ()})


def title(section: TaskSection) -> str:
    """The task's name."""
    if section.sources:
        return " + ".join(source.name for source in section.sources)
    return str(section.path) if section.kind == "file" else section.name


def of_source(fault: str, index: int) -> str:
    """The fault of a source's own task, in terms of the mixture's fields."""
    place = f"task.sources[{index}]"
    if not fault.startswith("task."):
        return f"{place}.path: {fault}"
    below = fault.removeprefix("task.")
    return f"{place}.dataset{below[4:]}" if below.startswith("name:") else f"{place}.{below}"


@dataclass(frozen=True)
class Appointed:
    """A grader, and the source whose questions it scores."""

    grader: Grader
    field: str  # of the recipe
    source: str  # its source; "": of a task without sources, and of suites
    dataset: str  # reasoning-gym's
    config: dict[str, Any]

    def judges(self, question: Question) -> bool:
        """Whether it scores responses to this question."""
        return question.source == self.source and _chosen(self.grader, question)


def appointed(section: TaskSection) -> list[Appointed]:
    """The graders of every source, in the recipe's order; a grader of several sources appears for
    each. The task's own graders score suites, also in a run with sources."""
    whose = [("", section, "task.graders")] if not section.sources else []
    for index, (name, part) in enumerate(by_source(section).items() if section.sources else ()):
        own = f"task.sources[{index}].graders" if section.sources[index].graders else "task.graders"
        whose.append((name, part, own))
    found = [
        Appointed(grader, f"{field}[{index}]", name, part.name, part.config)
        for name, part, field in whose
        for index, grader in enumerate(part.graders)
    ]
    if section.sources:
        found += [
            Appointed(grader, f"task.graders[{index}]", "", section.name, section.config)
            for index, grader in enumerate(section.graders)
            if grader.kind != "reasoning_gym"  # which scores only its own questions
        ]
    return found


def graders_of(section: TaskSection, question: Question) -> list[Grader]:
    """The graders that score responses to this question."""
    own = next((s.graders for s in section.sources if s.name == question.source), ())
    return [grader for grader in own or section.graders if _chosen(grader, question)]


def _chosen(grader: Grader, question: Question) -> bool:
    """Whether the grader scores questions with this value in the column ``data_source``."""
    return not grader.data_sources or question.metadata.get("data_source") in grader.data_sources
