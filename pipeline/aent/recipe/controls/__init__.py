"""The sections of a recipe's entropy controls.

``algorithm/entropy_controls/`` says what each one does, where it comes from and how certain our
reading is. The files here have the same names.
"""

from __future__ import annotations

import re
from typing import Annotated, get_args

from pydantic import Field

from aent.recipe.controls.advantages import (
    AdvantageClip,
    EntropyAdvantage,
    QuantileBaseline,
    ResponseEntropyAdvantage,
    SurpriseBoost,
)
from aent.recipe.controls.coefficient import (
    DifficultyCoefficient,
    EntropySmoothing,
)
from aent.recipe.controls.rollouts import (
    ForkedRollouts,
    MajorityReward,
    Reroll,
    RolloutBudget,
    TemperatureSchedule,
)
from aent.recipe.controls.section import ControlSection
from aent.recipe.controls.terms import (
    AdvantageKl,
    KeptGradient,
    KlCov,
    LowProbabilityKl,
    NucleusAnchor,
    ProbabilityPush,
)
from aent.recipe.controls.weights import (
    ClipCov,
    EntropyBudget,
    EntropyChangeMask,
    EntropyChangeWeight,
    EntropyRatioClip,
    SampleSwitch,
    TopEntropyTokens,
)

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
