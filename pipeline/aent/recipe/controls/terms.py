"""Entropy controls that add a term to the loss or change a gradient gate."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from aent.recipe.controls.section import ControlSection, Place


class KlCov(ControlSection):
    """KL-Cov (arXiv 2505.22617): a KL to the old policy for the tokens of highest covariance."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["kl_cov"]
    """Selects this section."""
    share: float = Field(2e-3, gt=0, lt=1)
    """Share of the step's response tokens with a KL term, at least one token."""
    coefficient: float = Field(1.0, gt=0)
    """Coefficient of the KL term."""


class AdvantageKl(ControlSection):
    """ADRPO (arXiv 2510.18053): the KL's weight is kl_coefficient - advantage, at least 0."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["advantage_kl"]
    """Selects this section."""


class ProbabilityPush(ControlSection):
    """EntroPIC (arXiv 2511.15248): pushes likely tokens up or down, towards a target entropy."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["probability_push"]
    """Selects this section."""
    target: float = Field(ge=0)
    """Target of the mean entropy, nats."""
    proportional_gain: float = Field(1.0, ge=0)
    """Proportional gain, per nat."""
    integral_gain: float = Field(0.01, ge=0)
    """Integral gain, per nat and step."""
    probability: float = Field(0.95, gt=0, lt=1)
    """A token above this probability counts as likely."""


class NucleusAnchor(ControlSection):
    """SIREN (arXiv 2509.25133): keeps the nuclei's entropy at its value in the first step."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["nucleus_anchor"]
    """Selects this section."""
    top_p: float = Field(0.8, gt=0, lt=1)
    """Probability of the nucleus."""
    top_k: int = Field(10_000, ge=1)
    """Largest number of tokens in a nucleus."""
    share: float = Field(0.2, gt=0, lt=1)
    """Share of each response's tokens that have the term."""
    coefficient: float = Field(0.005, gt=0)
    """Coefficient of the term."""


class KeptGradient(ControlSection):
    """CE-GPPO (arXiv 2509.20712): tokens that the clip cuts keep a share of their gradient."""

    ACTS_ON: ClassVar[Place] = "gradient gate"

    kind: Literal["kept_gradient"]
    """Selects this section."""
    low: float = Field(0.25, ge=0)
    """Share of the gradient kept for ratios below 1 - clip_low."""
    high: float = Field(1.0, ge=0)
    """Share of the gradient kept for ratios above 1 + clip_high."""


class LowProbabilityKl(ControlSection):
    """Lp-Reg (arXiv 2510.03222): protects unlikely tokens that are not noise from dying out."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["low_probability_kl"]
    """Selects this section."""
    share: float = Field(0.01, gt=0, le=1)
    """Share of the response tokens with a negative advantage, the least likely ones."""
    ratio: float = Field(0.02, gt=0, lt=1)
    """A token below this share of the largest probability is noise."""
    coefficient: float = Field(1.0, gt=0)
    """Coefficient of the term."""
