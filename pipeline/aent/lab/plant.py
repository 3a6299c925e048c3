"""A closed loop in one process: a policy that learns, and a controller of its entropy.

Model, questions and their order, advantage, loss, Adam and clipping are those of the recipe
``PLANT``. Its responses have one token, so sampling is one draw from a softmax: it needs no engine,
no second pass and no ranks, and 200 steps take about ten seconds of one core. Other effects of a
run (train-inference mismatch, reductions in another order) are absent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aent import tasks
from aent.algorithm.advantages import group_advantages
from aent.algorithm.losses import by_surprise
from aent.data.question import Question
from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.models import chat, model_source
from aent.models.facts import model_facts
from aent.models.tokenizer import Tokenizer
from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.tasks import choice, verifiers

PLANT = "recipes/compare/sets-none.yaml"
PAST = 0.9  # weight of the past in the averages of the gradients' norms, as in a run


def vocabulary() -> int:
    """Number of tokens of the policy."""
    return model_facts(load(data_path(PLANT)).model).vocab


@dataclass(frozen=True)
class Step:
    """One step, before its update.

    entropy: mean over the prompts, nats. standard_error: of that mean, over prompts. coefficient:
    of the term that the controller drives. reward: mean over samples. cross, bonus_square: <dL, dH>
    and ||dH||^2 of the gradients of policy loss (L) and mean entropy (H) with respect to the
    logits, summed over the prompts.
    """

    entropy: float
    standard_error: float
    coefficient: float
    reward: float
    cross: float
    bonus_square: float


def simulate(
    settings: ControllerSettings,
    seed: int,
    steps: int,
    learning_rate: float | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> list[Step]:
    """Train the policy from its first weights under a controller. Deterministic.

    The controller measures the entropy over the whole vocabulary, whatever its ``measure``.

    seed: of the questions, their order and the samples. learning_rate: instead of the recipe's.
    progress: iterates over the steps, and may report progress.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        plant = _Plant(seed, learning_rate, settings.drives)
        state, seen = controllers.initial_state(settings), []
        for step in progress(range(steps)):
            seen.append(plant.learn(step, state.coefficient))
            state, _ = controllers.update(settings, state, seen[-1].entropy)
        return seen
    finally:
        torch.set_num_threads(threads)


class _Plant:
    def __init__(self, seed: int, learning_rate: float | None, drives: str) -> None:
        self.drives = drives
        self.squares = torch.zeros(2)  # moving averages of ||dL||^2 and ||dH||^2
        self.recipe, model, self.tokenizer = _parts()
        self.model = copy.deepcopy(model)
        self.seed = seed
        self.task = tasks.load(self.recipe.task, seed)
        self.prompts = _Prompts(self.task.train, self.tokenizer, self.recipe, model.config)
        adam = self.recipe.trainer.optimizer
        rate = adam.lr if learning_rate is None else learning_rate
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, rate, adam.betas, adam.eps, weight_decay=adam.weight_decay
        )
        self.clip = adam.clip_grad
        self.generator = torch.Generator().manual_seed(seed)

    def learn(self, step: int, coefficient: float) -> Step:
        """Sample, grade and update once."""
        rollout = self.recipe.rollout
        n, samples = rollout.prompts_per_step, rollout.samples_per_prompt
        questions = choice.choose(self.task, step, n, self.seed).questions
        ids, last, rewards = self.prompts.of(questions)
        logits = self._logits(ids, last)
        log_probs = logits.log_softmax(dim=-1)
        probabilities = log_probs.exp()
        entropy = -(probabilities * log_probs).sum(dim=-1)
        drawn = torch.multinomial(
            probabilities.detach(), samples, replacement=True, generator=self.generator
        )
        reward = rewards.gather(1, drawn)
        groups = torch.arange(n).repeat_interleave(samples)
        advantage = group_advantages(reward.flatten(), groups, normalize=True).view_as(reward)
        chosen = log_probs.gather(1, drawn)
        if self.drives == "advantage_zeta":
            zeta = torch.full_like(advantage, coefficient)
            advantage = by_surprise(advantage, zeta, chosen.detach())
        policy_loss = -(advantage * chosen).mean()
        (policy,) = torch.autograd.grad(policy_loss, logits, retain_graph=True)
        (bonus,) = torch.autograd.grad(entropy.mean(), logits, retain_graph=True)
        self.optimizer.zero_grad()
        logits.backward(policy - self._bonus_coefficient(coefficient) * bonus)
        for square, gradient in zip(self.squares, (policy, bonus)):  # as in trainer.gradient_share
            square.mul_(PAST).add_((1 - PAST) * gradient.square().sum())
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return Step(
            entropy=float(entropy.detach().mean()),
            standard_error=float(entropy.detach().std()) / math.sqrt(n),
            coefficient=coefficient,
            reward=float(reward.mean()),
            cross=float((policy * bonus).sum()),
            bonus_square=float(bonus.square().sum()),
        )

    def _bonus_coefficient(self, coefficient: float) -> float:
        """The term of the loss that the controller drives (``algorithm.actuators``)."""
        if self.drives == "gradient_share":
            of_policy, of_bonus = (float(square) for square in self.squares)
            share = coefficient / (1 - coefficient)
            return share * math.sqrt(of_policy / of_bonus) if of_bonus else 0.0
        return coefficient if self.drives == "bonus" else 0.0

    def _logits(self, ids: Tensor, last: Tensor) -> Tensor:
        """[n, V]: of the token after each prompt."""
        hidden = self.model.model(input_ids=ids).last_hidden_state
        return self.model.lm_head(hidden[torch.arange(len(ids)), last])


class _Prompts:
    """The training questions as tokens, and the reward of each token of the vocabulary."""

    def __init__(
        self, questions: list[Question], tokenizer: Tokenizer, recipe: Recipe, config: Any
    ) -> None:
        rows = [tokenizer.chat_prompt(*q.turns(recipe.task.system_prompt)) for q in questions]
        self.place = {q.index: place for place, q in enumerate(questions)}
        self.length = torch.tensor([len(row) for row in rows])
        self.ids = torch.zeros(len(rows), int(self.length.max()), dtype=torch.long)
        for place, row in enumerate(rows):
            self.ids[place, : len(row)] = torch.tensor(row)
        texts = [tokenizer.decode([token]) for token in range(config.vocab_size)]
        self.reward = torch.tensor(
            [[verifiers.last_number(text, question) for text in texts] for question in questions]
        )

    def of(self, questions: list[Question]) -> tuple[Tensor, Tensor, Tensor]:
        """(ids [n, length], place of the last [n], reward of each answer [n, V])."""
        chosen = torch.tensor([self.place[q.index] for q in questions])
        length = self.length[chosen]
        # causal attention: a prompt's last token does not see the padding on its right
        return self.ids[chosen, : int(length.max())], length - 1, self.reward[chosen]


@cache
def _parts() -> tuple[Recipe, Any, Tokenizer]:
    """(recipe, model with its first weights, tokenizer)."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    recipe = load(data_path(PLANT))
    folder = model_source.resolve(recipe.model)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return recipe, model, _tokenizer(folder)


def _tokenizer(folder: Path) -> Tokenizer:
    """transformers' tokenizer. A run uses NeMo's, which reads the same file but takes ten seconds
    to import."""
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(folder)
    return Tokenizer(
        encode=lambda text: inner(text, add_special_tokens=False).input_ids,
        decode=lambda ids: str(inner.decode(list(ids), skip_special_tokens=True)),
        stop_ids=(inner.eos_token_id,),
        template=chat.find(folder),
        bos_ids=() if inner.bos_token_id is None else (inner.bos_token_id,),
    )
