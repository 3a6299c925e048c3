"""A contextual bandit with a real vocabulary: does it matter on which tokens the entropy bonus is
paid, if the same entropy is held?

The policy is SmolLM2's frozen trunk, a trainable residual adapter before its own tied head, and the
softmax over all 49,152 tokens. A question is "What is a + b + c?", an answer is its first token. No
engine, no ranks; 150 steps take about 45 seconds of one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from aent.algorithm.advantages import group_advantages
from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.entropy.statistics import token_statistics
from aent.models import model_source
from aent.models.facts import model_facts
from aent.recipe.schema import ModelSection

MODEL = "smollm2-135m-instruct"
TRAIN = 170  # of the 220 questions whose answer is one digit; the others are held out
PROMPTS, SAMPLES = 16, 32  # of a step
WIDTH = 256  # of the adapter
EVALUATE_EVERY = 25  # steps
TAIL = 1000  # likeliest tokens; all others are the tail
FIRST = 0.02  # coefficient


def vocabulary() -> int:
    """Number of tokens of the policy."""
    return model_facts(ModelSection(bundled=MODEL)).vocab


@dataclass(frozen=True)
class Arm:
    """On which tokens the bonus is paid, and whether a controller moves its coefficient."""

    name: str  # as it was given
    bonus: bool = True
    drop_fraction: float | None = None  # with top_k None too: the whole vocabulary
    top_k: int | None = None
    constant: float | None = None  # the coefficient; None: log_pi on the full entropy

    @staticmethod
    def parse(text: str) -> Arm:
        """Parse ``none``, ``full``, a dropped fraction (0.33) or ``top_k=K``; with ``@X`` the
        coefficient is X throughout. Raises ValueError naming the arm."""
        paid, at, constant = text.partition("@")
        try:
            value = float(constant) if at else None
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError
            if paid == "none" and value is None:
                return Arm(text, bonus=False, constant=0.0)
            if paid == "full":
                return Arm(text, constant=value)
            if paid.startswith("top_k="):
                if (count := int(paid.removeprefix("top_k="))) < 1:
                    raise ValueError
                return Arm(text, top_k=count, constant=value)
            if not 0 <= (fraction := float(paid)) < 1:
                raise ValueError
            return Arm(text, drop_fraction=fraction, constant=value)
        except ValueError:
            raise ValueError(
                f"{text!r} is not an arm: use none, full, a dropped fraction below 1 (0.33) or "
                "top_k=K, with @X for a constant coefficient"
            ) from None

    def controller(self, target: float) -> ControllerSettings:
        """log_pi as tuned for this policy; its box is wide, as in ``lab control``."""
        if self.constant is not None:
            return ControllerSettings("constant", self.constant)
        return ControllerSettings(
            "log_pi",
            FIRST,
            target=target,
            ramp_steps=20.0,
            proportional_gain=1.0,
            integral_gain=0.08,
            smoothing=0.3,
            min=1e-4,
            max=2.0,
        )


@dataclass(frozen=True)
class Scores:
    """Results on all questions of one kind, from the policy's own probabilities."""

    pass_1: float  # mean probability of the right token
    pass_8: float  # that one of eight samples is right
    greedy: float  # share whose likeliest token is right
    entropy: float  # nats
    tail: float  # probability outside the TAIL likeliest tokens


@dataclass(frozen=True)
class Step:
    """One step, before its update; ``train`` and ``heldout`` after it, at some steps only."""

    entropy: float  # full, mean over the step's prompts, nats
    coefficient: float
    reward: float
    train: Scores | None
    heldout: Scores | None


def simulate(
    arm: Arm,
    seed: int,
    steps: int,
    target: float,
    learning_rate: float,
    progress: Callable[[range], Iterable[int]] = iter,
) -> list[Step]:
    """Run one arm with one seed. The arms of a seed get the same questions in the same order, begin
    with the same adapter, and use the same random numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        policy, settings = _Policy(seed, learning_rate), arm.controller(target)
        state, seen = controllers.initial_state(settings), []
        for step in progress(range(steps)):
            entropy, reward = policy.learn(arm, state.coefficient)
            scored = step % EVALUATE_EVERY == EVALUATE_EVERY - 1 or step == steps - 1
            train = policy.score(policy.train) if scored else None
            heldout = policy.score(policy.heldout) if scored else None
            seen.append(Step(entropy, state.coefficient, reward, train, heldout))
            state, _ = controllers.update(settings, state, entropy)
        return seen
    finally:
        torch.set_num_threads(threads)


class _Policy:
    def __init__(self, seed: int, learning_rate: float) -> None:
        self.hidden, self.head, self.answers = _questions()
        self.generator = torch.Generator().manual_seed(1000 + seed)
        # which questions are held out is the same for every seed
        order = torch.randperm(len(self.answers), generator=torch.Generator().manual_seed(7))
        self.train, self.heldout = order[:TRAIN], order[TRAIN:]
        size = self.hidden.shape[1]
        first = torch.randn(size, WIDTH, generator=self.generator) / size**0.5
        self.adapter = [first.requires_grad_(), torch.zeros(WIDTH, size, requires_grad=True)]
        self.optimizer = torch.optim.Adam(self.adapter, learning_rate, betas=(0.9, 0.95))
        self.scale = self.hidden.norm(dim=1).mean() / size**0.5

    def logits(self, chosen: Tensor) -> Tensor:
        """[n, V] of these questions."""
        hidden, (first, second) = self.hidden[chosen], self.adapter
        return (hidden + torch.relu(hidden / self.scale @ first) @ second) @ self.head.t()

    def learn(self, arm: Arm, coefficient: float) -> tuple[float, float]:
        """Sample, grade and update once; returns (full entropy, reward) before the update.

        loss = -mean(A log p) - coefficient mean(H of the arm's set), A normalized within a group.
        """
        order = torch.randperm(TRAIN, generator=self.generator)
        chosen = self.train[order[:PROMPTS]]
        logits, answers = self.logits(chosen), self.answers[chosen]
        log_probs = logits.log_softmax(dim=-1)
        drawn = torch.multinomial(
            log_probs.detach().exp(), SAMPLES, replacement=True, generator=self.generator
        )
        reward = (drawn == answers[:, None]).float()
        groups = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
        advantage = group_advantages(reward.flatten(), groups, normalize=True).view_as(reward)
        loss = -(advantage * log_probs.gather(1, drawn)).mean()
        whole = arm.drop_fraction is None and arm.top_k is None
        paid = token_statistics(logits, answers, drop_fraction=arm.drop_fraction, top_k=arm.top_k)
        if arm.bonus:
            entropy = paid.entropy if whole else paid.clamped_entropy
            loss = loss - coefficient * entropy.mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adapter, 1.0)
        self.optimizer.step()
        return float(paid.entropy.detach().mean()), float(reward.mean())

    @torch.no_grad()
    def score(self, questions: Tensor) -> Scores:
        logits, answers = self.logits(questions), self.answers[questions]
        log_probs = logits.log_softmax(dim=-1)
        probabilities = log_probs.exp()
        right = probabilities.gather(1, answers[:, None])[:, 0]
        likeliest = probabilities.topk(min(TAIL, logits.shape[1]), dim=1).values
        return Scores(
            pass_1=float(right.mean()),
            pass_8=float((1 - (1 - right) ** 8).mean()),
            greedy=float((logits.argmax(1) == answers).float().mean()),
            entropy=float(-(probabilities * log_probs).sum(1).mean()),
            tail=float(1 - likeliest.sum(1).mean()),
        )


@cache
def _questions() -> tuple[Tensor, Tensor, Tensor]:
    """(hidden state before the answer [220, h], head [V, h], token of the answer [220])."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    folder = model_source.resolve(ModelSection(bundled=MODEL))
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    sums = [(a, b, c) for a in range(10) for b in range(10) for c in range(10) if a + b + c < 10]
    prompts = [
        ids(f"<|im_start|>user\nWhat is {a} + {b} + {c}?<|im_end|>\n<|im_start|>assistant\n")
        for a, b, c in sums
    ]
    with torch.no_grad():  # every prompt has the same number of tokens
        parts = torch.tensor(prompts).split(44)
        hidden = torch.cat([model.model(input_ids=p).last_hidden_state[:, -1] for p in parts])
    answers = torch.tensor([ids(str(sum(numbers)))[0] for numbers in sums])
    return hidden, model.lm_head.weight.detach(), answers
