"""Entropy controls that change how a step is sampled or rewarded."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from aent.recipe.controls.section import ControlSection, Place


class TemperatureSchedule(ControlSection):
    """E3 (arXiv 2505.18573): a temperature that keeps the entropy at its first value."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["temperature_schedule"]
    """Selects this section."""
    anneal_share: float = Field(0.4, ge=0, lt=1)
    """Share of the steps, at the end of the run, in which the aim falls."""
    anneal_to: float = Field(0.9, gt=0, le=1)
    """Share of the first step's entropy that the aim falls to."""


class RolloutBudget(ControlSection):
    """E3 (arXiv 2505.18573): more responses for questions with lower rewards so far."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["rollout_budget"]
    """Selects this section."""
    low: int = Field(4, ge=1)
    """Fewest responses to a question."""
    high: int = Field(12, ge=1)
    """Most responses to a question."""


class Reroll(ControlSection):
    """AEPO (arXiv 2510.08141): some good responses come from another temperature."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["reroll"]
    """Selects this section."""
    target: float = Field(ge=0)
    """Entropy, nats; the paper's 0.5 to 0.75."""
    share: float = Field(0.25, gt=0, le=1)
    """Share of the step's prompts."""
    high: float = Field(1.2, gt=0)
    """Temperature if the entropy is at most the target."""
    low: float = Field(0.8, gt=0)
    """Temperature if the entropy is above the target."""
    limit: int = Field(60, ge=1)
    """Responses kept in a step; half as many if the entropy is above the target."""


class MajorityReward(ControlSection):
    """TTRL's and ETTRL's reward (arXiv 2504.16084, 2508.11356): agreement with the majority."""

    ACTS_ON: ClassVar[Place] = "reward"

    kind: Literal["majority_reward"]
    """Selects this section."""


class ForkedRollouts(ControlSection):
    """ETTRL's tree of responses, ETMR (arXiv 2508.11356), to each of the M whole ones of a prompt;
    rollout.samples_per_prompt = M (1 + forks branches), the paper's 12 (1 + 2 x 2)."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["forked_rollouts"]
    """Selects this section."""
    forks: int = Field(2, ge=1)
    """Tokens of the highest entropy in a response, at which others branch off."""
    branches: int = Field(2, ge=1)
    """Responses that branch off at each of them."""
