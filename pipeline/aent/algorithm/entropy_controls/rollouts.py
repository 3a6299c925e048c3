"""Entropy controls that act on the rollouts: temperature, responses per prompt, rewards.

A function that makes a plan (``Control.plan``) stands before the one that looks at the step when it
has been scored (``Control.apply``), where there are both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from aent.algorithm.entropy_controls import plan as plans
from aent.algorithm.entropy_controls.base import Context, Effect, Kept
from aent.algorithm.entropy_controls.plan import Plan
from aent.algorithm.terms import LossTerms
from aent.recipe.controls import (
    ForkedRollouts,
    MajorityReward,
    Reroll,
    RolloutBudget,
    TemperatureSchedule,
)

# -- E3's temperature


def at_temperature(plan: Plan, _settings: TemperatureSchedule, kept: Kept) -> Plan:
    """E3's temperature, as the last step left it; the recipe's before the first step."""
    return replace(plan, temperature=kept.get("temperature", plan.temperature))


def temperature_schedule(
    terms: LossTerms, settings: TemperatureSchedule, context: Context
) -> Effect:
    """E3's temperature (arXiv 2505.18573): after each step but the first

        T <- T (1 + T ln(H* / H) / (ln V + ln ln V))

    H the mean entropy of the step at its T, H* that of the first step, times a factor that falls
    from 1 to ``anneal_to`` as half a cosine over the last ``anneal_share`` of the steps. Log-probs,
    entropies and the loss are those of the policy at the T of the step.

    Certainty: as in its public code (read), which takes H from the step's updates.
    """
    step, steps = context.step, context.recipe.steps
    temperature, entropy = context.batch.temperature, context.mean_entropy
    target = context.kept.get("target", entropy)
    if not context.kept or min(entropy, target) <= 0:  # without entropy nothing says how far to go
        return Effect(terms, {"temperature": temperature, "target": target})
    begin = steps - int(steps * settings.anneal_share)
    if step >= begin:
        cosine = (1 + math.cos(math.pi * (step - begin) / (steps - begin))) / 2
        target *= settings.anneal_to + (1 - settings.anneal_to) * cosine
    log_v = math.log(context.vocab_size)
    change = temperature * math.log(target / entropy) / (log_v + math.log(log_v))
    following = temperature * (1 + change)
    return Effect(terms, {"temperature": following, "target": context.kept["target"]})


# -- E3's budget


def within_budget(plan: Plan, settings: RolloutBudget, kept: Kept) -> Plan:
    """E3's budget: each question's number of responses by the rewards that it has had."""
    means = {int(item): total / count for item, (total, count) in kept.get("rewards", {}).items()}

    def samples(items: Sequence[int]) -> list[int]:
        return allocate(plan.samples(items), items, means, settings.low, settings.high)

    return replace(plan, samples=samples)


def allocate(
    samples: Sequence[int], items: Sequence[int], means: Mapping[int, float], low: int, high: int
) -> list[int]:
    """How many responses each question gets: more for those that went worse before.

    Of all questions asked so far, ordered from the highest mean reward to the lowest, r is a
    question's place from 0 divided by their number. Of the budget B of the step's known questions,
    one gets low + floor((B - low n) r / sum r), at most high; what is left goes to the hardest, as
    much as they may have, one after the other. A question asked for the first time gets what it
    would get without this.
    """
    order = sorted(means, key=lambda item: (-means[item], item))
    ranks = {item: place / len(order) for place, item in enumerate(order)}
    known = [i for i, item in enumerate(items) if item in ranks]
    counts = list(samples)
    budget = sum(samples[i] for i in known)
    total = sum(ranks[items[i]] for i in known)
    for i in known:
        share = ranks[items[i]] / total if total else 0.0
        counts[i] = min(high, low + math.floor((budget - low * len(known)) * share))
    left = budget - sum(counts[i] for i in known)
    for i in sorted(known, key=lambda i: -ranks[items[i]]):
        more = min(left, high - counts[i])
        counts[i], left = counts[i] + more, left - more
    return counts


def rollout_budget(terms: LossTerms, _settings: RolloutBudget, context: Context) -> Effect:
    """E3's rollout budget (arXiv 2505.18573): of a step's responses, questions whose mean reward
    was low so far get more, others fewer (``allocate``). Keeps each question's rewards.

    Certainty: the allocation is that of its public code (read), bounded above in its first round
    too. There the ranks are renewed once an epoch, and the bounds widen by 2 an epoch from all the
    same; here both hold from the second time a question is asked.
    """
    batch = context.batch
    rewards = {item: list(seen) for item, seen in context.kept.get("rewards", {}).items()}
    for item, reward in zip(batch.item[batch.own].tolist(), batch.reward[batch.own].tolist()):
        total, count = rewards.get(str(item), (0.0, 0))
        rewards[str(item)] = [total + reward, count + 1]
    return Effect(terms, {"rewards": rewards})


# -- AEPO


def with_reroll(plan: Plan, settings: Reroll, kept: Kept) -> Plan:
    """AEPO's re-rolls, by the last step's entropy; none where none is known yet."""
    entropy = kept.get("entropy")
    if entropy is None:
        return plan
    low = entropy <= settings.target
    return replace(
        plan,
        reroll=plans.Reroll(
            settings.share,
            settings.high if low else settings.low,
            settings.limit if low else settings.limit // 2,
        ),
    )


def reroll(terms: LossTerms, _settings: Reroll, context: Context) -> Effect:
    """AEPO (arXiv 2510.08141): a share of the prompts is sampled once more at a temperature above
    the policy's where the last step's entropy was at most the target, below it otherwise. Those of
    the responses that did better than their group learn with advantage 1, as REINFORCE, in place
    of as many of the others.

    They learn at the policy's own temperature, so that they pull it towards the distribution they
    came from. The engine's log-probs of them, being another policy's, are no part of any gap.

    Certainty: as in its public code (read): a quarter of the prompts, 1.2 and .8, at most 60, half
    as many where entropy is too high, the batch's first responses give way. There they leave the
    batch, here they have no policy loss and keep their place in the mean's denominator. Its test is
    advantage > .05. It re-rolls in the first step too, where entropy has not been measured yet.
    """
    batch = context.batch
    extra = batch.rerolled[batch.sequence_of_token] & batch.loss_mask
    others = (~batch.rerolled).nonzero()[:, 0]
    gives_way = torch.zeros_like(batch.rerolled)
    gives_way[others[: int(batch.rerolled.sum())]] = True
    stays = ~gives_way[batch.sequence_of_token] & batch.loss_mask
    terms = replace(terms, advantages=torch.where(extra, 1.0, terms.advantages))
    return Effect(terms.weighed(stays.float()), {"entropy": context.mean_entropy})


# -- ETTRL


def by_majority(plan: Plan, _settings: MajorityReward, _kept: Kept) -> Plan:
    """Majority-vote reward (TTRL, arXiv 2504.16084; ETTRL, 2508.11356): 1 for a response whose
    answer is the most frequent one of its group, else 0; nobody looks at the label. Among equally
    frequent answers the one that was given first counts; a response without an answer has no vote.

    Certainty: the rule is from a secondary note. What an answer is, and that equal means equal
    text, is said in ``tasks.verifiers.answer_in``. The judge's rewards are recorded as
    ``reward/judged_mean``.
    """
    return replace(plan, reward=majority)


def majority(answers: Sequence[str | None]) -> list[float]:
    """The vote's reward of each answer of a group."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return [0.0] * len(answers)
    ((winner, _),) = votes.most_common(1)
    return [float(answer == winner) for answer in answers]


def in_trees(plan: Plan, settings: ForkedRollouts, _kept: Kept) -> Plan:
    """ETTRL's forking rollouts, ETMR (arXiv 2508.11356): of each prompt's responses M are sampled
    whole; at the N = ``forks`` most uncertain tokens of each, B = ``branches`` others branch off,
    M (1 + B N) in all, which is ``rollout.samples_per_prompt``. All of them vote (with
    ``majority_reward``) and learn.

    Certainty: ETMR-style. The tree is from a secondary note (M 12, N 2, B 2), how uncertainty is
    measured was not found: here by the engine's twenty likeliest tokens. A forked token is sampled
    anew, so that it may come out as before.
    """
    return replace(plan, fork=plans.Fork(settings.forks, settings.branches))
