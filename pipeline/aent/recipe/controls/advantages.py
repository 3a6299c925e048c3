"""Entropy controls that change advantages."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from aent.recipe.controls.section import ControlSection, Place


class EntropyAdvantage(ControlSection):
    """Entropy-shaped advantage (arXiv 2506.14758): more for uncertain tokens."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["entropy_advantage"]
    """Selects this section."""
    scale: float = Field(0.4, gt=0)
    """The paper's alpha, per nat."""
    limit: float = Field(2.0, gt=1)
    """The paper's kappa: at most |advantage| / limit is added."""


class ResponseEntropyAdvantage(ControlSection):
    """ETTRL's advantage reshaping, EAR (arXiv 2508.11356): less for uncertain responses."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["response_entropy_advantage"]
    """Selects this section."""


class AdvantageClip(ControlSection):
    """ETTRL's other advantage reshaping (arXiv 2508.11356): cut at a bound."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["advantage_clip"]
    """Selects this section."""
    bound: float = Field(2.0, gt=0)
    """Largest absolute advantage."""


class SurpriseBoost(ControlSection):
    """STARE (arXiv 2606.19236): larger advantages for surprising tokens, while entropy is low."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["surprise_boost"]
    """Selects this section."""
    share: float = Field(0.1, gt=0, lt=1)
    """Share of the tokens with an advantage of the same sign."""
    positive: float = Field(1.1, gt=0)
    """Factor of advantages above 0."""
    negative: float = Field(1.0, gt=0)
    """Factor of advantages below 0; the paper's variant: 0.9."""
    below: float = Field(0.3, gt=0)
    """Mean entropy, nats, above which nothing is changed."""


class QuantileBaseline(ControlSection):
    """QAE (arXiv 2509.22611): advantages over a quantile of the group's rewards, not the mean."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["quantile_baseline"]
    """Selects this section."""
    quantile: float = Field(0.4, gt=0, lt=1)
    """Quantile of the group's rewards that is the baseline."""
