"""A token MDP with a vocabulary as large as a language model's, and its exact policy gradients.

The MDP. An answer has ``horizon`` tokens. At its first token, ``optimal`` of the ``actions`` are
right; at each later token exactly one is. So there are ``optimal`` optimal answers, and each earns
1. One other first token, the decoy, ends the answer with ``decoy_reward``; any other wrong token
ends it with 0. The policy is tabular: a softmax over ``actions`` logits at each of the ``horizon``
states.

The first policy: independent normal logits of standard deviation ``spread``, rounded to ``grid``
like 16-bit logits. The decoy is the policy's likeliest first token. The right first tokens are
drawn from the ``plausible`` likeliest others. The right token of a later state is the policy's
likeliest one: after a right first token the rest is easy.

Why 100,000 actions are cheap: the derivative of the value, and of both entropies, with respect to
an action's logit depends on that logit, on the action's reward and next state, and on sums over all
actions. Actions that agree in these get the same gradient and so stay equal. They are kept as one
*class* with a size, about three hundred classes per state because of the rounding. Only the clamp
can separate equal actions: it keeps the lower ids of the class with the K-th largest logit, and
that class is split in two. Nothing is approximated: tests/lab/test_mdp.py compares this with the
full-size policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """The MDP and its first policy; the module's docstring explains the fields.

    The paper (arXiv 2509.03493) does not publish its constants: except for ``actions`` these are
    ours.
    """

    optimal: int
    actions: int = 100_000
    horizon: int = 2
    decoy_reward: float = 0.2
    plausible: int = 200
    spread: float = 4.0
    grid: float = 0.125

    def __post_init__(self) -> None:
        if not 1 <= self.optimal <= self.plausible:
            raise ValueError(f"optimal is {self.optimal}, but must be in [1, {self.plausible}]")


@dataclass
class Policies:
    """Policies of R runs at H states by classes of equal actions, each array [R, H, C].

    logits: of one action of the class. size: how many actions it has; 0 for an unused entry.
    reward: of each of these actions. An action ends the answer unless goes_on; then the next state
    follows. A class has a block of consecutive ids, in the order of the entries.
    """

    logits: Floats
    size: Floats
    reward: Floats
    goes_on: Bools

    def repeated(self, times: int) -> Policies:
        """The same runs repeated ``times`` times, in blocks."""
        again = (times, 1, 1)
        return Policies(
            np.tile(self.logits, again), np.tile(self.size, again),
            np.tile(self.reward, again), np.tile(self.goes_on, again),
        )  # fmt: skip

    def keep(self, kept: NDArray[np.int64]) -> Bools:
        """Return which classes hold the kept[r] largest logits of each state of run r.

        Among equal logits the lower ids are kept, as in ``aent.entropy.token_statistics``. A class
        of which only a part is kept is split first, which may enlarge the arrays.
        """
        mask = self.size > 0
        clamped = np.flatnonzero(kept < self.size[:, 0].sum(axis=-1))
        if not len(clamped):
            return mask
        size = self.size[clamped]
        order = np.argsort(-self.logits[clamped], axis=-1, kind="stable")
        ordered = np.take_along_axis(size, order, axis=-1)
        larger = ordered.cumsum(axis=-1) - ordered
        number = np.empty_like(size)
        first = np.clip(kept[clamped, None, None] - larger, 0, ordered)
        np.put_along_axis(number, order, first, axis=-1)
        parted = np.argwhere((number > 0) & (number < size))
        mask[clamped] = number > 0
        if len(parted):
            run, state, place = parted.T
            self._part(clamped[run], state, place, number[run, state, place])
            mask = np.pad(mask, [(0, 0), (0, 0), (0, self.size.shape[-1] - mask.shape[-1])])
        return mask

    def _part(self, run: NDArray, state: NDArray, place: NDArray, number: Floats) -> None:
        """Leave the first ``number`` actions in each of these classes, and move the others to an
        unused entry.

        The entry is behind those of all equal actions, in the order of the ids.
        """
        if not (self.size[run, state] == 0).any(axis=-1).all():
            for name in ("logits", "size", "reward", "goes_on"):
                setattr(self, name, np.pad(getattr(self, name), [(0, 0), (0, 0), (0, 8)]))
        free = (self.size[run, state] == 0).argmax(axis=-1)
        for array in (self.logits, self.reward, self.goes_on):
            array[run, state, free] = array[run, state, place]
        self.size[run, state, free] = self.size[run, state, place] - number
        self.size[run, state, place] = number


def draw(tasks: list[Task], seeds: list[int]) -> Policies:
    """The first policies, one for each pair of task and seed.

    With one seed the logits are the same for every ``optimal``, and the right tokens of a smaller
    ``optimal`` are among those of a larger one.
    """
    drawn = [_draw_states(task, seed) for task, seed in zip(tasks, seeds, strict=True)]
    most = max(len(state[0]) for states in drawn for state in states)
    shape = (len(drawn), tasks[0].horizon, most)
    policies = Policies(
        np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
    )
    for run, states in enumerate(drawn):
        for state, (logits, size, reward, goes_on) in enumerate(states):
            used = (run, state, slice(len(logits)))
            policies.logits[used], policies.size[used] = logits, size
            policies.reward[used], policies.goes_on[used] = reward, goes_on
    return policies


def _draw_states(task: Task, seed: int) -> list[tuple[Floats, Floats, Floats, Bools]]:
    """Logit, size, reward and goes_on of each class, for each state."""
    states = []
    for position in range(task.horizon):
        random = np.random.default_rng([seed, position])
        all_logits = random.normal(0.0, task.spread, task.actions)
        all_logits = np.sort(np.round(all_logits / task.grid) * task.grid)[::-1]
        right, decoy = np.array([0]), np.array([], dtype=int)
        if position == 0:
            right, decoy = 1 + random.permutation(task.plausible)[: task.optimal], right
        named = np.concatenate([right, decoy])
        others, number = np.unique(np.delete(all_logits, named), return_counts=True)
        logits = np.concatenate([all_logits[named], others])
        size = np.concatenate([np.ones(len(named)), number])
        reward, goes_on = np.zeros_like(logits), np.zeros_like(logits, dtype=bool)
        if position == task.horizon - 1:
            reward[: len(right)] = 1.0
        else:
            goes_on[: len(right)] = True
        reward[len(right) : len(named)] = task.decoy_reward
        states.append((logits, size, reward, goes_on))
    return states


@dataclass(frozen=True)
class Exact:
    """Values of the policies, in expectation over all answers; entropies in nats.

    value: [R] expected reward of an answer. visits: [R, H] probability that the state is reached.
    entropy: [R, H] of the policy there; kept_entropy: of the policy renormalized on the kept
    actions. value_gradient: [R, H, C] of ``value`` by the logit of one action of the class.
    bonus_gradient: the same of sum over states of visits * kept_entropy, with the visits held
    fixed: as in a trainer's loss, where the tokens sampled are given.
    """

    value: Floats
    visits: Floats
    entropy: Floats
    kept_entropy: Floats
    value_gradient: Floats
    bonus_gradient: Floats

    @property
    def mean_entropy(self) -> Floats:
        """[R]: mean of ``entropy`` over the tokens of the answers."""
        return (self.visits * self.entropy).sum(axis=-1) / self.visits.sum(axis=-1)

    @property
    def mean_kept_entropy(self) -> Floats:
        """[R]: mean of ``kept_entropy`` over the tokens of the answers."""
        return (self.visits * self.kept_entropy).sum(axis=-1) / self.visits.sum(axis=-1)


def exact(policies: Policies, mask: Bools) -> Exact:
    """Values, entropies and gradients of policies whose kept classes are ``mask`` (``keep``).

    With p the probability of an action at a state that is reached with probability d, whose value
    is V and where the action is worth Q (its reward, or the next state's value), the policy
    gradient theorem gives dV/dz = d p (Q - V) for its logit z. The entropy's is -p (log p + H).
    """
    probability, entropy, _ = _entropy(policies, policies.size > 0)
    _, kept_entropy, kept_gradient = _entropy(policies, mask)
    mass = policies.size * probability
    onwards = (mass * policies.goes_on).sum(axis=-1)
    visits = np.cumprod(
        np.concatenate([np.ones_like(onwards[:, :1]), onwards[:, :-1]], axis=1), axis=1
    )
    values = np.zeros((len(visits), visits.shape[1] + 1))
    worth = np.empty_like(mass)
    for state in reversed(range(visits.shape[1])):
        following = values[:, state + 1, None]
        worth[:, state] = policies.reward[:, state] + policies.goes_on[:, state] * following
        values[:, state] = (mass[:, state] * worth[:, state]).sum(axis=-1)
    advantage = worth - values[:, :-1, None]
    reached = visits[..., None]
    return Exact(
        values[:, 0], visits, entropy, kept_entropy,
        reached * probability * advantage, reached * kept_gradient,
    )  # fmt: skip


def _entropy(policies: Policies, mask: Bools) -> tuple[Floats, Floats, Floats]:
    """One action's probability under the policy renormalized on ``mask``, the entropy of that
    policy, and its derivative with respect to one action's logit: [R, H, C], [R, H], [R, H, C]."""
    logits = np.where(mask, policies.logits, -np.inf)
    unnormalized = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total = (policies.size * unnormalized).sum(axis=-1, keepdims=True)
    p = unnormalized / total
    log_p = np.where(p > 0, np.log(np.where(p > 0, p, 1.0)), 0.0)
    entropy = -(policies.size * p * log_p).sum(axis=-1)
    return p, entropy, -p * (log_p + entropy[..., None])
