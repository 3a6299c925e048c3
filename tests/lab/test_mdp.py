"""The MDP by classes of equal actions is the plain one, full-size, action by action."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from aent.entropy import controllers, token_statistics
from aent.entropy.controllers import ControllerSettings
from aent.lab.experiment import STEP_SIZE, Arm, learn
from aent.lab.mdp import Policies, Task, draw, exact

SMALL = Task(optimal=3, actions=400, plausible=20, spread=2.0)


def spread_out(policies: Policies, run: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, reward, goes_on of one run, an entry per action: each [H, actions]."""

    def every_action(array: np.ndarray) -> Tensor:
        size = policies.size[run].astype(int)
        return torch.from_numpy(np.stack([np.repeat(*pair) for pair in zip(array[run], size)]))

    return tuple(map(every_action, (policies.logits, policies.reward, policies.goes_on)))


def value_and_visits(logits: Tensor, reward: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor]:
    """V by going forward through the states (the classes' code goes backward)."""
    reached, value, visits = torch.ones((), dtype=torch.float64), 0.0, []
    for state, p in enumerate(logits.softmax(dim=-1)):
        visits.append(reached)
        value = value + reached * (p * reward[state]).sum()
        reached = reached * (p * goes_on[state]).sum()
    return value, torch.stack(visits)


def plain(task: Task, arm: Arm, seed: int, steps: int) -> tuple[list[float], list[float]]:
    """Reward and entropy before each step: every action by itself, the trainer's statistics,
    gradients by autograd."""
    logits, reward, goes_on = spread_out(draw([task], [seed]), 0)
    logits.requires_grad_()
    target = torch.zeros(task.horizon, dtype=torch.int64)
    state = controllers.initial_state(arm.controller)
    rewards, entropies = [], []
    for _ in range(steps + 1):
        value, visits = value_and_visits(logits, reward, goes_on)
        found = token_statistics(logits, target, drop_fraction=None, top_k=arm.kept)
        weight = visits.detach()
        objective = value + state.coefficient * (weight * found.clamped_entropy).sum()
        (gradient,) = torch.autograd.grad(objective, logits)
        rewards.append(value.item())
        entropies.append(((weight * found.entropy).sum() / weight.sum()).item())
        measured = (weight * found.clamped_entropy.detach()).sum() / weight.sum()
        state, _ = controllers.update(arm.controller, state, measured.item())
        logits = (logits.detach() + STEP_SIZE * gradient).requires_grad_()
    return rewards, entropies


BAND = ControllerSettings("band", 0.2, low=1.0, high=2.0, step_size=0.01, min=0.0, max=0.4)


@pytest.mark.parametrize(
    ("task", "arm", "steps"),
    [
        (SMALL, Arm(None, ControllerSettings("constant", 0.2)), 100),
        (SMALL, Arm(37, ControllerSettings("constant", 0.2)), 100),
        # so few are kept that right tokens come in, and others go
        (SMALL, Arm(8, ControllerSettings("constant", 0.05)), 100),
        (Task(optimal=3, actions=400, plausible=20, horizon=3), Arm(37, BAND), 100),
        (Task(optimal=15), Arm(1_000, ControllerSettings("constant", 0.115)), 3),  # full size
    ],
)
def test_classes_are_the_plain_policy(task: Task, arm: Arm, steps: int, monkeypatch) -> None:
    monkeypatch.setattr("aent.lab.experiment.EVERY", 1)
    curves = learn([task], seeds=2, steps=steps, arms={"arm": arm})
    for seed in range(2):
        rewards, entropies = plain(task, arm, seed, steps)
        np.testing.assert_allclose(curves.reward[:, seed], rewards, rtol=1e-8)
        np.testing.assert_allclose(curves.entropy[:, seed], entropies, rtol=1e-8)
    assert abs(rewards[-1] - rewards[0]) > 1e-3  # the policy has learned


def test_a_class_is_parted_once_and_only_where_the_clamp_cuts_it() -> None:
    policies = draw([SMALL, SMALL], [0, 0])
    places = (policies.size > 0).sum(axis=-1)
    kept = np.array([37, 400])
    mask = policies.keep(kept)
    assert ((policies.size * mask).sum(axis=-1) == kept[:, None]).all()
    more = (policies.size > 0).sum(axis=-1) - places
    assert set(more[0]) <= {0, 1}
    assert more[0].sum() > 0
    assert (more[1] == 0).all()
    np.testing.assert_array_equal(policies.keep(kept), mask)


def test_value_is_the_mean_over_all_answers() -> None:
    task = Task(optimal=2, actions=6, plausible=3, horizon=3, spread=1.0)
    policies = draw([task], [3])
    now = exact(policies, policies.keep(np.array([6])))
    logits, reward, goes_on = (array.numpy() for array in spread_out(policies, 0))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    value = 0.0
    for answer in itertools.product(range(6), repeat=3):
        for state, action in enumerate(answer):
            if not goes_on[state, action]:
                break
        chance = np.prod([p[i, a] for i, a in enumerate(answer)])
        value += chance * reward[state, action]
    assert now.value[0] == pytest.approx(value, rel=1e-12)


def test_the_answers_are_as_many_as_asked_and_begin_plausible() -> None:
    for optimal in (15, 1):
        policies = draw([Task(optimal)], [0])
        logits, _, goes_on = spread_out(policies, 0)
        assert logits.shape == (2, 100_000)
        right = goes_on[0].nonzero()[:, 0]
        assert len(right) == optimal
        better = (logits[0] > logits[0][right].min()).sum()
        assert better <= 200
        assert policies.reward[0, 0].max() == 0.2
        assert (policies.reward[0, 1] == 1).sum() == 1
