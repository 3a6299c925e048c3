"""The sections of a recipe's entropy controls: what each can be told.

What each does, where it comes from and how sure that is stands in algorithm/entropy_controls/.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from aent.recipe.section import Resume, Section

Place = Literal[
    "sampling", "reward", "advantage", "token weight", "loss term", "gradient gate", "coefficient"
]


class ControlSection(Section):
    """Base of the entropy controls. A control's docstring begins with its method's name."""

    RESUME: ClassVar[Resume] = "warn"
    ACTS_ON: ClassVar[Place]


class TopEntropyTokens(ControlSection):
    """80/20 (arXiv 2506.01939): the policy loss of the most uncertain tokens alone."""

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


class KlCov(ControlSection):
    """KL-Cov (arXiv 2505.22617): a KL to the old policy for the tokens of highest covariance."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["kl_cov"]
    """Selects this section."""
    share: float = Field(2e-3, gt=0, lt=1)
    """Share of the step's response tokens with a KL term, at least one token."""
    coefficient: float = Field(1.0, gt=0)
    """Coefficient of the KL term."""


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
    """ETTRL's other advantage reshaping (arXiv 2508.11356): none beyond a bound."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["advantage_clip"]
    """Selects this section."""
    bound: float = Field(2.0, gt=0)
    """Largest absolute advantage."""


class EntropyRatioClip(ControlSection):
    """ERC (arXiv 2512.05591): no policy loss for tokens whose entropy has left the old one."""

    ACTS_ON: ClassVar[Place] = "gradient gate"

    kind: Literal["entropy_ratio_clip"]
    """Selects this section."""
    low: float = Field(0.05, gt=0, le=1)
    """Tokens whose entropy is below (1 - low) times the old one are cut."""
    high: float = Field(0.05, gt=0)
    """Tokens whose entropy is above (1 + high) times the old one are cut."""


class AdvantageKl(ControlSection):
    """ADRPO (arXiv 2510.18053): algorithm.kl_coefficient less the advantage, not below 0."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["advantage_kl"]
    """Selects this section."""


class EntropySmoothing(ControlSection):
    """EPO (arXiv 2509.22576): a bonus that keeps entropies near the mean of the steps before."""

    ACTS_ON: ClassVar[Place] = "coefficient"

    kind: Literal["entropy_smoothing"]
    """Selects this section."""
    strength: float = Field(0.1, gt=0)
    """The paper's alpha."""
    low: float = Field(0.0, ge=0)
    """Nothing is taken from the bonus above low times the mean entropy of the steps before."""
    high: float = Field(2.0, gt=0)
    """Nothing is taken from the bonus below high times the mean entropy of the steps before."""
    growth: float = Field(3.0, ge=0)
    """The paper's gamma: the strength falls from twice alpha towards alpha."""


class DifficultyCoefficient(ControlSection):
    """AER's coefficient per prompt (arXiv 2510.10959): 1 - mean reward times controller's."""

    ACTS_ON: ClassVar[Place] = "coefficient"

    kind: Literal["difficulty_coefficient"]
    """Selects this section."""


class ProbabilityPush(ControlSection):
    """EntroPIC (arXiv 2511.15248): likely tokens are made likelier or less so, towards a target."""

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
    """SIREN (arXiv 2509.25133): the nuclei's entropy is held where it was at the first step."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["nucleus_anchor"]
    """Selects this section."""
    top_p: float = Field(0.8, gt=0, lt=1)
    """Probability of the nucleus."""
    top_k: int = Field(10_000, ge=1)
    """Tokens of a nucleus at most."""
    share: float = Field(0.2, gt=0, lt=1)
    """Share of each response's tokens that have the term."""
    coefficient: float = Field(0.005, gt=0)
    """Coefficient of the term."""


class TemperatureSchedule(ControlSection):
    """E3 (arXiv 2505.18573): a temperature that keeps entropy where it was at the first step."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["temperature_schedule"]
    """Selects this section."""
    anneal_share: float = Field(0.4, ge=0, lt=1)
    """Share of the steps, the last ones, in which the aim falls."""
    anneal_to: float = Field(0.9, gt=0, le=1)
    """Share of the first step's entropy that the aim falls to."""


class RolloutBudget(ControlSection):
    """E3 (arXiv 2505.18573): more responses for the questions that went worse so far."""

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


class SampleSwitch(ControlSection):
    """Entrocraft (arXiv 2604.26326): above a band good responses learn alone, below it bad ones."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["sample_switch"]
    """Selects this section."""
    low: float = Field(ge=0)
    """Lower end of the band of the mean entropy, nats."""
    high: float = Field(gt=0)
    """Upper end of the band, nats."""
    anneal_to: float = Field(1.0, gt=0)
    """Factor of the band at the last step."""


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
    """Mean entropy, nats, from which on nothing is changed."""


class EntropyChangeWeight(ControlSection):
    """STEER (arXiv 2510.10150): less weight for tokens that would change the entropy much."""

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


class QuantileBaseline(ControlSection):
    """QAE (arXiv 2509.22611): advantages over a quantile of the group's rewards, not their mean."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["quantile_baseline"]
    """Selects this section."""
    quantile: float = Field(0.4, gt=0, lt=1)
    """Quantile of the group's rewards that is the baseline."""


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
    """Lp-Reg (arXiv 2510.03222): unlikely tokens that are no noise are kept from dying out."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["low_probability_kl"]
    """Selects this section."""
    share: float = Field(0.01, gt=0, le=1)
    """Share of the response tokens with a negative advantage, the least likely ones."""
    ratio: float = Field(0.02, gt=0, lt=1)
    """Of the largest probability: a token below it is noise."""
    coefficient: float = Field(1.0, gt=0)
    """Coefficient of the term."""


class EntropyBudget(ControlSection):
    """Entropy budget: the policy loss may take no more entropy than its other tokens give."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["entropy_budget"]
    """Selects this section."""
    spend: float = Field(1.0, ge=0)
    """Nats that may be taken for each nat that is given."""


EntropyControl = Annotated[
    TopEntropyTokens
    | ClipCov
    | KlCov
    | EntropyAdvantage
    | ResponseEntropyAdvantage
    | AdvantageClip
    | EntropyRatioClip
    | AdvantageKl
    | EntropySmoothing
    | DifficultyCoefficient
    | ProbabilityPush
    | NucleusAnchor
    | TemperatureSchedule
    | RolloutBudget
    | Reroll
    | MajorityReward
    | ForkedRollouts
    | SampleSwitch
    | SurpriseBoost
    | EntropyChangeWeight
    | EntropyChangeMask
    | QuantileBaseline
    | KeptGradient
    | LowProbabilityKl
    | EntropyBudget,
    Field(discriminator="kind"),
]

KINDS: dict[str, type[ControlSection]] = {
    get_args(section.model_fields["kind"].annotation)[0]: section
    for section in get_args(get_args(EntropyControl)[0])
}


def kinds_of_method(name: str) -> list[str]:
    """The kinds of the controls that a published method (SIREN, E3, ...) is made of, if known."""
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])", re.IGNORECASE)
    kinds = []
    for kind, section in KINDS.items():
        found = word.search((section.__doc__ or "").partition(" (")[0])
        if found and not found[0].islower():  # a name, not a plain word
            kinds.append(kind)
    return kinds
