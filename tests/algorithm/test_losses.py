"""The policy losses against their formulas, computed by hand in plain Python."""

import math

import pytest
import torch

from aent.algorithm.losses import policy_loss
from aent.recipe.schema import AlgorithmSection

LOG_PROB = [-0.5, -1.0, -2.0, -0.1, -3.0, -0.7]
OLD = [-0.7, -0.9, -0.5, -0.8, -1.0, -0.7]
ADVANTAGE = [1.0, -1.0, 2.0, 1.5, -2.0, 0.0]


def by_hand(i: int, s: AlgorithmSection) -> tuple[float, float]:
    """(loss, d loss / d log_prob) of token i."""
    r, a = math.exp(LOG_PROB[i] - OLD[i]), ADVANTAGE[i]
    inside = 1 - s.clip_low <= r <= 1 + s.clip_high
    surrogate, clipped = r * a, min(max(r, 1 - s.clip_low), 1 + s.clip_high) * a
    loss = -min(surrogate, clipped)
    gradient = -r * a if inside or surrogate < clipped else 0.0
    if s.dual_clip is not None and a < 0 and loss > -s.dual_clip * a:
        loss, gradient = -s.dual_clip * a, 0.0
    return loss, gradient


@pytest.mark.parametrize(
    "settings",
    [
        AlgorithmSection(),
        AlgorithmSection(clip_low=0.1, clip_high=0.5),
        AlgorithmSection(dual_clip=1.05),
    ],
)
def test_clipped_surrogate_value_and_gradient(settings):
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    result = policy_loss(log_prob, torch.tensor(OLD), torch.tensor(ADVANTAGE), settings)
    result.loss.sum().backward()
    for i in range(len(LOG_PROB)):
        loss, gradient = by_hand(i, settings)
        assert result.loss[i].item() == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert log_prob.grad[i].item() == pytest.approx(gradient, rel=1e-5, abs=1e-7)
        cut = gradient == 0 and ADVANTAGE[i] != 0
        assert bool(result.clipped[i]) == cut


def test_dual_clip_really_cuts_in_its_test():
    settings = AlgorithmSection(dual_clip=1.05, clip_high=10)
    log_prob, old = torch.tensor([0.0]), torch.tensor([-1.0])
    result = policy_loss(log_prob, old, torch.tensor([-1.0]), settings)
    assert result.loss.item() == pytest.approx(1.05)
    assert result.clipped.item()


def test_without_old_logprobs_the_ratio_is_one_and_the_gradient_is_minus_the_advantage():
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    result = policy_loss(log_prob, None, torch.tensor(ADVANTAGE), AlgorithmSection())
    result.loss.sum().backward()
    assert torch.equal(result.loss.detach(), -torch.tensor(ADVANTAGE))
    assert torch.equal(log_prob.grad, -torch.tensor(ADVANTAGE))
    assert not result.clipped.any()


def test_kl_to_the_reference_is_k3_with_its_gradient():
    settings = AlgorithmSection(kl_coefficient=0.3)
    log_prob = torch.tensor(LOG_PROB, requires_grad=True)
    zero = torch.zeros(len(LOG_PROB))
    result = policy_loss(log_prob, None, zero, settings, reference_logprobs=torch.tensor(OLD))
    result.loss.sum().backward()
    for i, (p, q) in enumerate(zip(LOG_PROB, OLD)):
        k3 = math.exp(q - p) - (q - p) - 1
        assert result.kl_reference[i].item() == pytest.approx(k3, rel=1e-5, abs=1e-7)
        assert result.loss[i].item() == pytest.approx(0.3 * k3, rel=1e-5, abs=1e-7)
        expected = 0.3 * (1 - math.exp(q - p))
        assert log_prob.grad[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_importance_scales_the_surrogate_only():
    settings = AlgorithmSection(kl_coefficient=0.5)
    args = (torch.tensor(LOG_PROB), torch.tensor(OLD), torch.tensor(ADVANTAGE), settings)
    reference, weight = torch.tensor(OLD), torch.tensor([0.0, 0.5, 1.0, 2.0, 1.0, 1.0])
    plain = policy_loss(*args, reference_logprobs=reference)
    weighted = policy_loss(*args, reference_logprobs=reference, importance=weight)
    kl = 0.5 * plain.kl_reference
    torch.testing.assert_close(weighted.loss - kl, (plain.loss - kl) * weight)
