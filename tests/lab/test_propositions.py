"""The paper's two propositions (arXiv 2509.03493), as numbers, on the laboratory's MDP.

Both are about the gradient by every action's logit, of an expected reward between 0 and 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aent.lab.experiment import STEP_SIZE
from aent.lab.mdp import Exact, Policies, Task, draw, exact


def gradient_norm(policies: Policies, gradient: np.ndarray) -> np.ndarray:
    """[R]: 2-norm over all actions of all states."""
    return np.sqrt((policies.size * gradient**2).sum(axis=(1, 2)))


def answer_entropy(now: Exact) -> np.ndarray:
    """[R]: entropy of the distribution over whole answers, nats."""
    return (now.visits * now.entropy).sum(axis=-1)


def test_proposition_1_the_values_gradient_is_at_most_twice_the_entropy() -> None:
    """Without a bonus the entropy vanishes, and with it the gradient: a wrong answer stays.

    Checked throughout while 100,000 actions collapse onto the decoy, and again with a decoy that is
    worth as much as the answers, which is five times nearer to the bound.
    """
    tasks = [Task(15), Task(1), Task(15, decoy_reward=1.0), Task(1, decoy_reward=1.0)]
    policies = draw(tasks, [0, 1, 2, 3])
    everything = np.full(len(tasks), 100_000)
    norms = []
    for _ in range(400):
        now = exact(policies, policies.keep(everything))
        norm, entropy = gradient_norm(policies, now.value_gradient), answer_entropy(now)
        assert (norm <= 2 * entropy).all()
        assert (norm <= 2 * tasks[0].horizon).all()  # were the paper's H the horizon
        norms.append(norm)
        policies.logits += STEP_SIZE * now.value_gradient
    assert (answer_entropy(now) < 0.05).all()
    assert abs(now.value[:2] - 0.2).max() < 0.01
    assert (norms[-1] < np.max(norms, axis=0) / 50).all()


def value(logits: Tensor, reward: Tensor, goes_on: Tensor, coefficient: float) -> Tensor:
    """V + coefficient * entropy of the answers: what the full bonus maximizes, backward in time."""
    following = torch.zeros((), dtype=torch.float64)
    for state in reversed(range(len(logits))):
        log_p = logits[state].log_softmax(dim=-1)
        earned = reward[state] + goes_on[state] * following - coefficient * log_p
        following = (log_p.exp() * earned).sum()
    return following


def reached(p: Tensor, goes_on: Tensor) -> Tensor:
    """[H]: probability that each state is visited."""
    onwards = (p * goes_on).sum(dim=-1)
    return torch.cat([torch.ones(1, dtype=torch.float64), onwards[:-1].cumprod(dim=0)])


def best_policy(reward: Tensor, goes_on: Tensor, coefficient: float) -> Tensor:
    """[H, actions]: probabilities that maximize ``value``, by soft value iteration."""
    following, rows = torch.zeros((), dtype=torch.float64), []
    for state in reversed(range(len(reward))):
        scaled = (reward[state] + goes_on[state] * following) / coefficient
        rows.insert(0, scaled.softmax(dim=-1))
        following = coefficient * scaled.logsumexp(dim=-1)
    return torch.stack(rows)


def test_proposition_2_the_full_bonus_costs_what_it_says() -> None:
    """V* - V <= eps^2 / (2 lambda C) + lambda H log(|A| / |A*_H|^(1/H)), where eps is the norm of
    the gradient of V + lambda * entropy.

    C here is ours, the paper's could not be had: C = min over states of d^2 min_a p^2 / d*, d the
    state's probability of being visited, d* that under the best policy of the regularized problem.
    It is Mei et al.'s argument (arXiv 2005.06392, lemma 15) with the states kept apart: the gap in
    the regularized value is at most the sum over states of d* lambda KL(p || softmax(Q/lambda)), a
    KL is at most half the squared largest difference of logits, here A/lambda, and the gradient
    has the entries d p A. The second term is the entropy that the regularized optimum may gain over
    the policy that is uniform over the optimal answers.
    """
    task = Task(optimal=3, actions=40, plausible=20, spread=2.0)
    policies = draw([task], [0])
    size = policies.size[0].astype(int)
    arrays = (policies.logits, policies.reward, policies.goes_on)
    logits, reward, goes_on = (
        torch.from_numpy(np.stack([np.repeat(row, n) for row, n in zip(array[0], size)])).double()
        for array in arrays
    )
    noise = torch.randn(logits.shape, dtype=torch.float64, generator=torch.manual_seed(0))
    for coefficient in (0.1, 0.3, 1.0):
        bias = coefficient * task.horizon * np.log(task.actions / task.optimal**0.5)
        best = best_policy(reward, goes_on, coefficient)
        most = value(best.log(), reward, goes_on, coefficient)
        best_visits = reached(best, goes_on)
        near = [best.log() + scale * noise for scale in (1.0, 1e-2, 1e-4, 1e-8, 0.0)]
        for z in (logits, *near):
            z = z.detach().requires_grad_()
            now = value(z, reward, goes_on, coefficient)
            (gradient,) = torch.autograd.grad(now, z)
            p = z.detach().softmax(dim=-1)
            c = (reached(p, goes_on) ** 2 * p.amin(dim=-1) ** 2 / best_visits).min()
            first = (gradient.norm() ** 2 / (2 * coefficient * c)).item()
            assert (most - now).item() <= first + 1e-12
            gap = 1.0 - value(p.log(), reward, goes_on, 0.0).item()
            assert gap <= first + bias
        assert first < 1e-6  # at the best policy of the regularized problem, where the bias is all
        assert gap > 0
