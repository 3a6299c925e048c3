"""The sections of a recipe's graders: what each can be told. What they do: docs/rewards.md."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from aent.recipe.section import Resume, Section

NAME = r"^[A-Za-z0-9_-]+$"  # a part of a metric's name


class GraderSection(Section):
    """Base of the graders. An answer's reward is the sum of weight times reward over its graders;
    the first grader of the list says whether it is right (a reward of 1 or more)."""

    RESUME: ClassVar[Resume] = "warn"

    weight: float = 1.0
    # only of questions with one of these in their column data_source; none: of all
    data_sources: tuple[str, ...] = ()


class LastNumber(GraderSection):
    """1 if the response's last number equals the answer, else 0."""

    kind: Literal["last_number"]
    name: str = Field("last_number", pattern=NAME)


class MathVerify(GraderSection):
    """1 if the response is mathematically equal to the answer, else 0."""

    kind: Literal["math_verify"]
    name: str = Field("math_verify", pattern=NAME)


class ReasoningGym(GraderSection):
    """The scorer of reasoning-gym's data set ``task.name``."""

    kind: Literal["reasoning_gym"]
    name: str = Field("reasoning_gym", pattern=NAME)


class PythonFunction(GraderSection):
    """A function of one's own: ``function(response, question)``."""

    kind: Literal["python"]
    name: str = Field("python", pattern=NAME)
    # path/to/file.py:name, or package.module:name
    function: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    # whose signature it has: aent's own; verl's compute_score; TRL's reward function, which gets
    # completions as texts (trl) or as lists of messages (trl_chat)
    style: Literal["aent", "verl", "trl", "trl_chat"] = "aent"
    group: bool = False  # it gets all responses to a question at once
    arguments: dict[str, Any] = Field({})  # further keyword arguments


Grader = Annotated[
    LastNumber | MathVerify | ReasoningGym | PythonFunction, Field(discriminator="kind")
]

KINDS: dict[str, type[GraderSection]] = {
    get_args(section.model_fields["kind"].annotation)[0]: section
    for section in get_args(get_args(Grader)[0])
}
