"""Entropy controls that weight or leave out the policy loss of tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from aent.recipe.controls.section import ControlSection, Place


class TopEntropyTokens(ControlSection):
    """80/20 (arXiv 2506.01939): the policy loss of only the most uncertain tokens."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["top_entropy_tokens"]
    """Selects this section."""
    share: float = Field(0.2, gt=0, lt=1)
    """Share of the step's response tokens that keep their policy loss."""


class ClipCov(ControlSection):
    """Clip-Cov (arXiv 2505.22617): no policy loss for some tokens of high covariance."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["clip_cov"]
    """Selects this section."""
    share: float = Field(2e-4, gt=0, lt=1)
    """Share of the step's response tokens that lose their policy loss, at least one token."""
    low: float = 1.0
    """Smallest covariance of the tokens they are drawn from."""
    high: float = 5.0
    """Largest covariance of the tokens they are drawn from."""
    exact: bool = False
    """Use the exact covariance of the token's own logits, nats; low and high are then yours to
    set."""


class EntropyRatioClip(ControlSection):
    """ERC (arXiv 2512.05591): no policy loss for tokens whose entropy has moved too far."""

    ACTS_ON: ClassVar[Place] = "gradient gate"

    kind: Literal["entropy_ratio_clip"]
    """Selects this section."""
    low: float = Field(0.05, gt=0, le=1)
    """Tokens whose entropy is below (1 - low) times the old one are cut."""
    high: float = Field(0.05, gt=0)
    """Tokens whose entropy is above (1 + high) times the old one are cut."""


class SampleSwitch(ControlSection):
    """Entrocraft (arXiv 2604.26326): trains on good responses above a band, on bad ones below."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["sample_switch"]
    """Selects this section."""
    low: float = Field(ge=0)
    """Lower end of the band of the mean entropy, nats."""
    high: float = Field(gt=0)
    """Upper end of the band, nats."""
    anneal_to: float = Field(1.0, gt=0)
    """Factor of the band at the last step."""


class EntropyChangeWeight(ControlSection):
    """STEER (arXiv 2510.10150): less weight for tokens that would change the entropy a lot."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["entropy_change_weight"]
    """Selects this section."""
    strength: float = Field(1.0, gt=0)
    """The paper's k, per nat."""
    least: float = Field(0.8, ge=0, lt=1)
    """Smallest weight."""
    exact: bool = False
    """Use the change by all of the token's logits, not by its own alone."""


class EntropyChangeMask(ControlSection):
    """Clip_B (arXiv 2602.03392): no policy loss for tokens that would change the entropy most."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["entropy_change_mask"]
    """Selects this section."""
    deviations: float = Field(3.0, gt=0)
    """Standard deviations from the mean beyond which a token has no policy loss."""
    exact: bool = False
    """Use the change by all of the token's logits, not by its own alone."""


class EntropyBudget(ControlSection):
    """Entropy budget: some tokens may lower it no more than the others raise it."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["entropy_budget"]
    """Selects this section."""
    spend: float = Field(1.0, ge=0)
    """Nats that may be taken for each nat that is given."""
