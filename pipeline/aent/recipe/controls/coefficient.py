"""Entropy controls that change the coefficient of the entropy bonus."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from aent.recipe.controls.section import ControlSection, Place


class EntropySmoothing(ControlSection):
    """EPO (arXiv 2509.22576): a bonus that keeps entropies near the mean of earlier steps."""

    ACTS_ON: ClassVar[Place] = "coefficient"

    kind: Literal["entropy_smoothing"]
    """Selects this section."""
    strength: float = Field(0.1, gt=0)
    """The paper's alpha."""
    low: float = Field(0.0, ge=0)
    """An entropy below low times the mean entropy of earlier steps is penalized."""
    high: float = Field(2.0, gt=0)
    """An entropy above high times the mean entropy of earlier steps is penalized."""
    growth: float = Field(3.0, ge=0)
    """The paper's gamma: the strength falls from twice alpha towards alpha."""


class DifficultyCoefficient(ControlSection):
    """AER's coefficient per prompt (arXiv 2510.10959): the controller's, times 1 - mean reward."""

    ACTS_ON: ClassVar[Place] = "coefficient"

    kind: Literal["difficulty_coefficient"]
    """Selects this section."""
