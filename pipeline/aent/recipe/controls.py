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
    share: float = Field(0.2, gt=0, lt=1)  # of the step's response tokens


class ClipCov(ControlSection):
    """Clip-Cov (arXiv 2505.22617): no policy loss for some tokens of high covariance."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["clip_cov"]
    share: float = Field(2e-4, gt=0, lt=1)  # of the step's response tokens, one at least
    low: float = 1.0  # covariances between which they are drawn
    high: float = 5.0
    exact: bool = False  # those of the token's own logits, nats; low and high are then yours


class KlCov(ControlSection):
    """KL-Cov (arXiv 2505.22617): a KL to the old policy for the tokens of highest covariance."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["kl_cov"]
    share: float = Field(2e-3, gt=0, lt=1)  # of the step's response tokens, one at least
    coefficient: float = Field(1.0, gt=0)


class EntropyAdvantage(ControlSection):
    """Entropy-shaped advantage (arXiv 2506.14758): more for uncertain tokens."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["entropy_advantage"]
    scale: float = Field(0.4, gt=0)  # alpha, per nat
    limit: float = Field(2.0, gt=1)  # kappa: at most abs(advantage) / limit is added


class ResponseEntropyAdvantage(ControlSection):
    """ETTRL's advantage reshaping, EAR (arXiv 2508.11356): less for uncertain responses."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["response_entropy_advantage"]


class AdvantageClip(ControlSection):
    """ETTRL's other advantage reshaping (arXiv 2508.11356): none beyond a bound."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["advantage_clip"]
    bound: float = Field(2.0, gt=0)


class EntropyRatioClip(ControlSection):
    """ERC (arXiv 2512.05591): no policy loss for tokens whose entropy has left the old one."""

    ACTS_ON: ClassVar[Place] = "gradient gate"

    kind: Literal["entropy_ratio_clip"]
    low: float = Field(0.05, gt=0, le=1)  # entropy over old entropy: from 1 - low
    high: float = Field(0.05, gt=0)  # to 1 + high


class AdvantageKl(ControlSection):
    """ADRPO (arXiv 2510.18053): algorithm.kl_coefficient less the advantage, not below 0."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["advantage_kl"]


class EntropySmoothing(ControlSection):
    """EPO (arXiv 2509.22576): a bonus that keeps entropies near the mean of the steps before."""

    ACTS_ON: ClassVar[Place] = "coefficient"

    kind: Literal["entropy_smoothing"]
    strength: float = Field(0.1, gt=0)  # alpha
    low: float = Field(0.0, ge=0)  # of the mean entropy of all earlier steps: from low times it
    high: float = Field(2.0, gt=0)  # to high times it nothing is taken from the bonus
    growth: float = Field(3.0, ge=0)  # gamma: strength falls from twice alpha towards alpha


class DifficultyCoefficient(ControlSection):
    """AER's coefficient per prompt (arXiv 2510.10959): 1 - mean reward times controller's."""

    ACTS_ON: ClassVar[Place] = "coefficient"

    kind: Literal["difficulty_coefficient"]


class ProbabilityPush(ControlSection):
    """EntroPIC (arXiv 2511.15248): likely tokens are made likelier or less so, towards a target."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["probability_push"]
    target: float = Field(ge=0)  # mean entropy, nats
    proportional_gain: float = Field(1.0, ge=0)  # per nat
    integral_gain: float = Field(0.01, ge=0)  # per nat and step
    probability: float = Field(0.95, gt=0, lt=1)  # above it a token is likely


class NucleusAnchor(ControlSection):
    """SIREN (arXiv 2509.25133): the nuclei's entropy is held where it was at the first step."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["nucleus_anchor"]
    top_p: float = Field(0.8, gt=0, lt=1)  # of the probability: the nucleus
    top_k: int = Field(10_000, ge=1)  # tokens of a nucleus, at most
    share: float = Field(0.2, gt=0, lt=1)  # of each response's tokens
    coefficient: float = Field(0.005, gt=0)


class TemperatureSchedule(ControlSection):
    """E3 (arXiv 2505.18573): a temperature that keeps entropy where it was at the first step."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["temperature_schedule"]
    anneal_share: float = Field(0.4, ge=0, lt=1)  # of the steps, the last, in which the aim falls
    anneal_to: float = Field(0.9, gt=0, le=1)  # to this share of the first step's entropy


class RolloutBudget(ControlSection):
    """E3 (arXiv 2505.18573): more responses for the questions that went worse so far."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["rollout_budget"]
    low: int = Field(4, ge=1)  # responses to a question: at least
    high: int = Field(12, ge=1)  # and at most


class Reroll(ControlSection):
    """AEPO (arXiv 2510.08141): some good responses come from another temperature."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["reroll"]
    target: float = Field(ge=0)  # entropy, nats; the paper's .5 to .75
    share: float = Field(0.25, gt=0, le=1)  # of the step's prompts
    high: float = Field(1.2, gt=0)  # temperature where entropy is at most the target
    low: float = Field(0.8, gt=0)  # and where it is above
    limit: int = Field(60, ge=1)  # responses kept a step; half as many where entropy is above


class MajorityReward(ControlSection):
    """TTRL's and ETTRL's reward (arXiv 2504.16084, 2508.11356): agreement with the majority."""

    ACTS_ON: ClassVar[Place] = "reward"

    kind: Literal["majority_reward"]


class ForkedRollouts(ControlSection):
    """ETTRL's tree of responses, ETMR (arXiv 2508.11356), to each of the M whole ones of a prompt;
    rollout.samples_per_prompt = M (1 + forks branches), the paper's 12 (1 + 2 x 2)."""

    ACTS_ON: ClassVar[Place] = "sampling"

    kind: Literal["forked_rollouts"]
    forks: int = Field(2, ge=1)  # tokens of the highest entropy in a response
    branches: int = Field(2, ge=1)  # responses that branch off at each of them


class SampleSwitch(ControlSection):
    """Entrocraft (arXiv 2604.26326): above a band good responses learn alone, below it bad ones."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["sample_switch"]
    low: float = Field(ge=0)  # mean entropy, nats
    high: float = Field(gt=0)
    anneal_to: float = Field(1.0, gt=0)  # at the last step the band is so many times this


class SurpriseBoost(ControlSection):
    """STARE (arXiv 2606.19236): larger advantages for surprising tokens, while entropy is low."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["surprise_boost"]
    share: float = Field(0.1, gt=0, lt=1)  # of the tokens with an advantage of that sign
    positive: float = Field(1.1, gt=0)  # factor where the advantage is above 0
    negative: float = Field(1.0, gt=0)  # and below; the paper's variant: .9
    below: float = Field(0.3, gt=0)  # mean entropy, nats, from which on nothing is changed


class EntropyChangeWeight(ControlSection):
    """STEER (arXiv 2510.10150): less weight for tokens that would change the entropy much."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["entropy_change_weight"]
    strength: float = Field(1.0, gt=0)  # k, per nat
    least: float = Field(0.8, ge=0, lt=1)  # weight, at least
    exact: bool = False  # the change by all of the token's logits, not by its own alone


class EntropyChangeMask(ControlSection):
    """Clip_B (arXiv 2602.03392): no policy loss for tokens that would change the entropy most."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["entropy_change_mask"]
    deviations: float = Field(3.0, gt=0)  # standard deviations from the mean, from which on
    exact: bool = False  # the change by all of the token's logits, not by its own alone


class QuantileBaseline(ControlSection):
    """QAE (arXiv 2509.22611): advantages over a quantile of the group's rewards, not their mean."""

    ACTS_ON: ClassVar[Place] = "advantage"

    kind: Literal["quantile_baseline"]
    quantile: float = Field(0.4, gt=0, lt=1)


class KeptGradient(ControlSection):
    """CE-GPPO (arXiv 2509.20712): tokens that the clip cuts keep a share of their gradient."""

    ACTS_ON: ClassVar[Place] = "gradient gate"

    kind: Literal["kept_gradient"]
    low: float = Field(0.25, ge=0)  # share of the gradient at the bound: ratios below 1 - clip_low
    high: float = Field(1.0, ge=0)  # above 1 + clip_high


class LowProbabilityKl(ControlSection):
    """Lp-Reg (arXiv 2510.03222): unlikely tokens that are no noise are kept from dying out."""

    ACTS_ON: ClassVar[Place] = "loss term"

    kind: Literal["low_probability_kl"]
    share: float = Field(0.01, gt=0, le=1)  # of the response tokens with A < 0, the least likely
    ratio: float = Field(0.02, gt=0, lt=1)  # of the largest probability: below it a token is noise
    coefficient: float = Field(1.0, gt=0)


class EntropyBudget(ControlSection):
    """Entropy budget: the policy loss may take no more entropy than its other tokens give."""

    ACTS_ON: ClassVar[Place] = "token weight"

    kind: Literal["entropy_budget"]
    spend: float = Field(1.0, ge=0)  # nats that may be taken for each that is given


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
