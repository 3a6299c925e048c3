"""The base of the entropy controls' sections."""

from __future__ import annotations

from typing import ClassVar, Literal

from aent.recipe.section import Resume, Section

Place = Literal[
    "sampling", "reward", "advantage", "token weight", "loss term", "gradient gate", "coefficient"
]


class ControlSection(Section):
    """Base of the entropy controls. A control's docstring begins with its method's name."""

    RESUME: ClassVar[Resume] = "warn"
    ACTS_ON: ClassVar[Place]
