"""What a controller's coefficient drives: the entropy bonus, or something else that moves entropy.

Any kind of controller (``entropy.controllers``) can drive any of them. For each, a larger
coefficient means more entropy, and 0 leaves the recipe's loss unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from aent.algorithm.terms import LossTerms
from aent.recipe.training import AlgorithmSection


@dataclass(frozen=True)
class Driven:
    """A step's loss after the coefficient was applied."""

    terms: LossTerms
    bonus: float  # coefficient of the entropy bonus


@dataclass(frozen=True)
class Step:
    """What an actuator can use."""

    terms: LossTerms
    loss_mask: Tensor  # [T] bool
    algorithm: AlgorithmSection
    # ||dL|| / ||dH|| of the gradients with respect to the logits, by averages over the updates so
    # far (``trainer.gradient_share``); NaN where unknown, as before the first
    norm_ratio: float


def bonus(coefficient: float, step: Step) -> Driven:
    """- coefficient * mean entropy in the loss."""
    return Driven(step.terms, coefficient)


def upper_clip(coefficient: float, step: Step) -> Driven:
    """Ratios are clipped above (1 + clip_high) (1 + coefficient) instead of 1 + clip_high, so that
    tokens with A > 0 can rise further.

    Certainty: MAI-Thinking-1's k and ADAPO's upper clip (with REPO, arXiv 2603.11682) from notes
    only. There k moves by +- delta towards a target (``kind: target`` does that), from 0, in
    [0, k_max]; MAI has an outer bound on ratios too, which ``dual_clip`` is for A < 0 alone.
    """
    if coefficient == 0:
        return Driven(step.terms, 0.0)
    high = (1 + step.algorithm.clip_high) * (1 + coefficient) - 1
    return Driven(replace(step.terms, clip_high=high * step.loss_mask.float()), 0.0)


def advantage_zeta(coefficient: float, step: Step) -> Driven:
    """REPO-R (arXiv 2603.11682): A (1 - zeta log pi) if A > 0, A (1 + zeta log pi) if A < 0,
    bounded at 0: with zeta, the coefficient, unlikely tokens rise more and fall less.

    Certainty: the formula is from a note and an open pull request's code. log pi is of the policy
    in training, without gradient; the bound at 0 is our reading of "sign kept". There zeta is
    doubled or halved and can become negative, which a coefficient cannot.
    """
    if coefficient == 0:
        return Driven(step.terms, 0.0)
    return Driven(replace(step.terms, zeta=coefficient * step.loss_mask.float()), 0.0)


def gradient_share(coefficient: float, step: Step) -> Driven:
    """The bonus, with the coefficient lambda at which its gradient on the logits is this share of
    both norms: s = lambda ||dH|| / (lambda ||dH|| + ||dL||). 0 until something was measured.

    Certainty: ours; no publication has it.
    """
    share = coefficient / (1 - coefficient)
    ratio = step.norm_ratio
    return Driven(step.terms, share * ratio if math.isfinite(ratio) else 0.0)


ACTUATORS: dict[str, Callable[[float, Step], Driven]] = {
    "bonus": bonus,
    "upper_clip": upper_clip,
    "advantage_zeta": advantage_zeta,
    "gradient_share": gradient_share,
}
