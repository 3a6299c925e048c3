"""Entropy controls that shape the entropy bonus, whose coefficient is the controller's."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from aent.algorithm.entropy_controls.base import Context, Effect
from aent.algorithm.terms import LossTerms, Smoothing
from aent.recipe.controls.coefficient import DifficultyCoefficient, EntropySmoothing


def entropy_smoothing(terms: LossTerms, settings: EntropySmoothing, context: Context) -> Effect:
    """EPO (arXiv 2509.22576) subtracts a smoothing penalty, with gradient, from each token's bonus:

        beta_k alpha ([low Hbar - H]+ + [H - high Hbar]+),    beta_k = 1 + exp(-growth k / k_mid)

    Hbar is the mean entropy of all earlier steps, k the step (from 0), k_mid half of the steps. The
    penalty is 0 at the first step. The loss is then the paper's L - lambda (mean H - beta_k
    L_smooth), with the controller's coefficient as lambda (in the paper: constant 0.001).

    Certainty: the paper's formulas; alpha 0.05 to 0.1, (low, high) (0, 2) or (0.5, 1.5), growth 3.
    Its public code differs: a penalty without gradient. Hbar is the mean over steps, not tokens.
    """
    steps, total = context.kept.get("steps", 0), context.kept.get("entropy_sum", 0.0)
    if steps:
        mean = total / steps
        beta = 1 + math.exp(-settings.growth * context.step / (context.recipe.steps / 2))
        mask = context.batch.loss_mask.float()
        smoothing = Smoothing(
            weight=beta * settings.strength * mask,
            low=settings.low * mean * mask,
            high=settings.high * mean * mask,
        )
        terms = replace(terms, smoothing=smoothing)
    return Effect(terms, {"steps": steps + 1, "entropy_sum": total + context.mean_entropy})


def difficulty_coefficient(
    terms: LossTerms, _settings: DifficultyCoefficient, context: Context
) -> Effect:
    """AER's coefficient per prompt (arXiv 2510.10959): lambda_q = lambda (1 - g), g the mean reward
    of the prompt's responses, bounded to [0, 1]: harder prompts get a larger bonus.

    Its other parts are a controller: lambda <- max(0, lambda + step_size (tau H_0 - H)) is
    ``automatic_band`` with low_fraction = high_fraction = tau (0.4), reference_steps 1, initial 0.

    Certainty: AER-style. That the coefficient falls with the success rate is from memory; we have
    not seen the formulas. 1 - g is the simplest such weight, and ours.
    """
    batch = context.batch
    _, group = torch.unique(batch.group, return_inverse=True)
    own = batch.own.float()
    groups = torch.zeros(int(group.max()) + 1)
    success = groups.index_add(0, group, batch.reward * own) / groups.index_add(0, group, own)
    # custom rewards can be any number: one above 1 must not turn the bonus into a penalty
    weight = (1 - success.clamp(0, 1))[group]
    factor = torch.where(batch.loss_mask, weight[batch.sequence_of_token], 0.0)
    return Effect(replace(terms, entropy_weight=terms.entropy_weight * factor))
