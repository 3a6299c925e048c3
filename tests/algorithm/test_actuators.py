"""The quantities that a coefficient can drive, against formulas in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from aent.algorithm.actuators import ACTUATORS, Driven, Step
from aent.algorithm.losses import InTraining, policy_loss
from aent.algorithm.terms import LossTerms
from aent.entropy import token_statistics
from aent.recipe.training import AlgorithmSection, ControllerSection

LOG_PROB = [-0.1, -0.5, -1.2, -2.3, -0.7]
OLD = [-0.9, -0.6, -1.9, -2.0, -0.9]
ADVANTAGE = [1.0, -1.0, 2.0, -0.5, 0.0]
MASK = torch.ones(5, dtype=torch.bool)
SETTINGS = AlgorithmSection(clip_low=0.2, clip_high=0.3)


def terms() -> LossTerms:
    ones = torch.ones(5)
    return LossTerms(torch.tensor(ADVANTAGE), ones, ones, old_logprobs=torch.tensor(OLD))


def driven(name: str, coefficient: float, norm_ratio: float = math.nan) -> Driven:
    return ACTUATORS[name](coefficient, Step(terms(), MASK, SETTINGS, norm_ratio))


def loss_of(of: LossTerms) -> tuple[list[float], list[float], list[bool]]:
    """(loss, gradient, clipped) of each token."""
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    found = policy_loss(log_prob, InTraining(torch.zeros(5)), of, SETTINGS)
    found.loss.sum().backward()
    assert log_prob.grad is not None
    return found.loss.tolist(), log_prob.grad.tolist(), found.clipped.tolist()


def test_the_recipe_names_those_there_are() -> None:
    names = ControllerSection.model_json_schema()["properties"]["drives"]["enum"]
    assert set(names) == set(ACTUATORS)


@pytest.mark.parametrize("name", ACTUATORS)
def test_a_coefficient_of_0_leaves_the_loss_as_it_is(name: str) -> None:
    found = driven(name, 0.0, norm_ratio=3.0)
    assert found.bonus == 0
    assert loss_of(found.terms) == loss_of(terms())


def test_the_bonus_is_the_coefficient() -> None:
    found = driven("bonus", 0.07)
    assert found.bonus == 0.07
    assert loss_of(found.terms) == loss_of(terms())


def test_the_upper_bound_alone_is_moved() -> None:
    """Ratios 2.23 (A 1), 1.11, 2.01 (A 2), 0.74 (A -0.5), 1.22; bounds 0.8 and 1.3 or 2.08."""
    found = driven("upper_clip", 0.6)
    assert found.bonus == 0
    loss, gradient, clipped = loss_of(found.terms)
    bound = 1.3 * 1.6
    ratios = [math.exp(new - old) for new, old in zip(LOG_PROB, OLD)]
    want = [-min(r * a, min(max(r, 0.8), bound) * a) for r, a in zip(ratios, ADVANTAGE)]
    assert loss == pytest.approx(want, rel=1e-5)
    assert clipped == [True, False, False, True, False]
    assert loss_of(terms())[2] == [True, False, True, True, False]
    assert gradient[2] == pytest.approx(-ratios[2] * 2.0, rel=1e-5)  # no longer cut


def test_zeta_makes_unlikely_tokens_rise_more_and_fall_less() -> None:
    found = driven("advantage_zeta", 0.5)
    factors = [1 + 0.05, 1 - 0.25, 1 + 0.6, max(0.0, 1 - 1.15), 1.0]
    assert found.bonus == 0
    loss, gradient, _ = loss_of(found.terms)
    plain, slopes, _ = loss_of(terms())
    assert loss == pytest.approx([f * x for f, x in zip(factors, plain)], rel=1e-5)
    assert gradient == pytest.approx([f * g for f, g in zip(factors, slopes)], rel=1e-5)


def test_the_bonus_gets_its_share_of_both_pulls() -> None:
    found = driven("gradient_share", 0.25, norm_ratio=0.6)
    policy, entropy = 0.6 * 5.0, 5.0  # any norms of this ratio
    assert found.bonus * entropy / (found.bonus * entropy + policy) == pytest.approx(0.25)
    assert driven("gradient_share", 0.25).bonus == 0  # nothing measured yet


def test_ratios_are_fp32_whatever_the_logits_are() -> None:
    """bf16 has 8 bits: a log-prob of -2 would be known to 0.008; a clip at 1.2 is hit by chance."""
    logits = torch.randn(5, 40).bfloat16()
    of = token_statistics(logits, torch.arange(5), drop_fraction=0.3)
    assert of.log_prob.dtype == torch.float32
    found = policy_loss(of.log_prob, InTraining(torch.zeros(5)), terms(), SETTINGS)
    assert found.loss.dtype == torch.float32
    want = logits.double().log_softmax(1)[range(5), range(5)]
    torch.testing.assert_close(of.log_prob.double(), want, atol=1e-5, rtol=1e-5)
