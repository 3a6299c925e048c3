"""How many tokens a rank has at once, in the longest batch that a recipe can sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe


@dataclass(frozen=True)
class MicroBatch:
    """The longest micro-batch, of one rank."""

    tokens: int  # of this rank: its part of the micro-batch with context parallelism
    whole: int  # tokens of the micro-batch, on all context-parallel ranks
    responses: int  # most response tokens among ``tokens``
    sequence: int  # tokens of the longest prompt with its longest response
    longest: int  # tokens of the longest unit: a sequence, or a group with a shared prompt
    copied: float  # keys per token that responses with a shared prompt have copies of
    in_mini_batch: int  # number of them in a mini-batch, on one data-parallel rank


def micro_batch(recipe: Recipe, layout: ParallelLayout) -> MicroBatch:
    """Of responses that all have the greatest length."""
    rollout, trainer = recipe.rollout, recipe.trainer
    tokens, responses = _mini_batch(recipe, layout)
    whole = min(trainer.micro_batch_tokens, tokens)
    sequence = rollout.max_prompt_tokens + rollout.max_response_tokens
    longest = min(whole, _longest_unit(recipe) if trainer.share_prompts else sequence)
    behind = (longest - rollout.max_prompt_tokens) // rollout.max_response_tokens  # one prompt
    own = -(-whole // layout.context)
    return MicroBatch(
        tokens=own,
        whole=whole,
        responses=min(own, responses),  # one rank's part may have no prompt
        sequence=min(whole, sequence),
        longest=longest,
        copied=behind * sequence / longest if behind > 1 else 0.0,
        in_mini_batch=-(-tokens // whole),
    )


def largest(recipe: Recipe) -> tuple[int, int]:
    """Responses of the largest possible group, and of the largest possible mini-batch: as in the
    recipe, unless an entropy control gives some questions more."""
    rollout = recipe.rollout
    prompts = rollout.prompts_per_step // recipe.trainer.mini_batches
    group = rollout.samples_per_prompt
    total = prompts * group
    budget, reroll = recipe.control("rollout_budget"), recipe.control("reroll")
    if budget is not None:  # the same number in a step, but distributed differently
        group = budget.high
        total = min(prompts * group, rollout.prompts_per_step * rollout.samples_per_prompt)
    if reroll is not None:  # at most those answers of a group that are above a mean
        better, again = group - 1, math.ceil(reroll.share * rollout.prompts_per_step)
        group += min(reroll.limit, better)
        total += min(reroll.limit, min(prompts, again) * better)
    return group, total


def _longest_unit(recipe: Recipe) -> int:
    """Tokens of the largest possible group with a shared prompt."""
    group, _ = largest(recipe)
    return recipe.rollout.max_prompt_tokens + group * recipe.rollout.max_response_tokens


def _mini_batch(recipe: Recipe, layout: ParallelLayout) -> tuple[int, int]:
    """(tokens, response tokens) of the longest possible mini-batch, per data-parallel rank.

    A prompt counts once per response; once per group if prompts are shared and the longest group
    fits a micro-batch (else it is split, and its prompt computed again).
    """
    rollout, trainer = recipe.rollout, recipe.trainer
    group, total = largest(recipe)
    prompts = responses = -(-total // layout.data)
    if trainer.share_prompts and _longest_unit(recipe) <= trainer.micro_batch_tokens:
        groups = rollout.prompts_per_step // trainer.mini_batches
        prompts = -(-groups // layout.data)
        responses = min(prompts * group, total)
    tokens = responses * rollout.max_response_tokens
    return prompts * rollout.max_prompt_tokens + tokens, tokens
