"""How many tokens a rank has at once, in the longest batch that a recipe may sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe


@dataclass(frozen=True)
class MicroBatch:
    """The longest micro-batch, of one rank."""

    tokens: int  # that this rank computes: its part of the micro-batch with context parallelism
    whole: int  # tokens of the micro-batch, on all context-parallel ranks
    responses: int  # response tokens among ``tokens`` at most
    sequence: int  # tokens of the longest prompt with its longest response
    longest: int  # tokens of the longest unit: a sequence, or a group behind a shared prompt
    copied: float  # keys, for each token, that responses behind one prompt have copies of
    in_mini_batch: int  # how many of them a mini-batch has, of one data-parallel rank


def micro_batch(recipe: Recipe, layout: ParallelLayout) -> MicroBatch:
    """Of responses that are all as long as they may be."""
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
        responses=min(own, responses),  # one rank may have no prompt in its part
        sequence=min(whole, sequence),
        longest=longest,
        copied=behind * sequence / longest if behind > 1 else 0.0,
        in_mini_batch=-(-tokens // whole),
    )


def largest(recipe: Recipe) -> tuple[int, int]:
    """Responses of the largest possible group, and of the largest possible mini-batch: the
    recipe's, unless an entropy control gives some questions more."""
    rollout = recipe.rollout
    prompts = rollout.prompts_per_step // recipe.trainer.mini_batches
    group = rollout.samples_per_prompt
    total = prompts * group
    budget, reroll = recipe.control("rollout_budget"), recipe.control("reroll")
    if budget is not None:  # no more in a step, but shared out otherwise
        group = budget.high
        total = min(prompts * group, rollout.prompts_per_step * rollout.samples_per_prompt)
    if reroll is not None:  # those of a group's answers to the same question that are above a mean
        better, again = group - 1, math.ceil(reroll.share * rollout.prompts_per_step)
        group += min(reroll.limit, better)
        total += min(reroll.limit, min(prompts, again) * better)
    return group, total


def _longest_unit(recipe: Recipe) -> int:
    """Tokens of the largest possible group behind one prompt."""
    group, _ = largest(recipe)
    return recipe.rollout.max_prompt_tokens + group * recipe.rollout.max_response_tokens


def _mini_batch(recipe: Recipe, layout: ParallelLayout) -> tuple[int, int]:
    """(tokens, response tokens) of the longest possible mini-batch, per data-parallel rank.

    A prompt is there once a response; once a group where prompts are shared and the longest group
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
