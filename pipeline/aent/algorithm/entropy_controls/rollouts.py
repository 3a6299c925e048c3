"""Entropy controls that act on the rollouts: temperature, responses per prompt, rewards.

If a control has both, its plan (``Control.plan``) precedes its function for the scored step
(``Control.apply``).
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
from aent.recipe.controls.rollouts import (
    ForkedRollouts,
    MajorityReward,
    Reroll,
    RolloutBudget,
    TemperatureSchedule,
)

# -- E3's temperature


def at_temperature(plan: Plan, _settings: TemperatureSchedule, kept: Kept) -> Plan:
    """E3's temperature after the last step; the recipe's temperature before the first."""
    return replace(plan, temperature=kept.get("temperature", plan.temperature))


def temperature_schedule(
    terms: LossTerms, settings: TemperatureSchedule, context: Context
) -> Effect:
    """E3's temperature (arXiv 2505.18573): after each step but the first

        T <- T (1 + T ln(H* / H) / (ln V + ln ln V))

    H is the mean entropy of the step at its T. H* is that of the first step, times a factor that
    falls from 1 to ``anneal_to`` as half a cosine over the last ``anneal_share`` of the steps.
    Log-probs, entropies and the loss are of the policy at the step's T.

    Certainty: as in its public code (read), which takes H from the step's updates.
    """
    step, steps = context.step, context.recipe.steps
    temperature, entropy = context.batch.temperature, context.mean_entropy
    target = context.kept.get("target", entropy)
    # without an entropy the change of temperature is undefined
    if not context.kept or min(entropy, target) <= 0:
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
    """E3's budget: the number of responses for each question, from its earlier rewards."""
    means = {int(item): total / count for item, (total, count) in kept.get("rewards", {}).items()}

    def samples(items: Sequence[int]) -> list[int]:
        return allocate(plan.samples(items), items, means, settings.low, settings.high)

    return replace(plan, samples=samples)


def allocate(
    samples: Sequence[int], items: Sequence[int], means: Mapping[int, float], low: int, high: int
) -> list[int]:
    """How many responses each question gets: more for those with lower rewards so far.

    All questions asked so far are ordered from the highest mean reward to the lowest; r is a
    question's index in that order divided by their number. With the budget B of the step's n known
    questions, each gets low + floor((B - low n) r / sum r), at most high. The rest goes to the
    hardest questions, one after the other, up to high. A question asked for the first time gets
    what it would get without this control.
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
    """E3's rollout budget (arXiv 2505.18573): questions with low mean rewards so far get more of a
    step's responses, others fewer (``allocate``). Remembers each question's rewards.

    Certainty: the allocation is that of its public code (read), but also bounded above in the first
    round. That code renews the ranks once an epoch, and widens the bounds by 2 an epoch, starting
    from equal numbers; here both apply from the second time a question is asked.
    """
    batch = context.batch
    rewards = {item: list(seen) for item, seen in context.kept.get("rewards", {}).items()}
    for item, reward in zip(batch.item[batch.own].tolist(), batch.reward[batch.own].tolist()):
        total, count = rewards.get(str(item), (0.0, 0))
        rewards[str(item)] = [total + reward, count + 1]
    return Effect(terms, {"rewards": rewards})


# -- AEPO


def with_reroll(plan: Plan, settings: Reroll, kept: Kept) -> Plan:
    """AEPO's re-rolls, from the last step's entropy; none if it is not known yet."""
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
    """AEPO (arXiv 2510.08141): a share of the prompts is sampled again, at a temperature above the
    policy's if the last step's entropy was at most the target, else below it. Responses that did
    better than their group are trained on with advantage 1, as in REINFORCE, and replace as many of
    the others.

    They are trained on at the policy's own temperature, so that the policy moves towards the
    distribution they came from. The engine's log-probs of them belong to another policy and do not
    count in the train-inference mismatch.

    Certainty: as in its public code (read): a quarter of the prompts, 1.2 and 0.8, at most 60, half
    as many if the entropy is too high; the batch's first responses are replaced. There they leave
    the batch; here they have no policy loss but still count in the mean's denominator. Its test is
    advantage > 0.05. It also re-rolls in the first step, before any entropy is measured.
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
    answer is the most frequent one of its group, else 0; the label is not used. Among equally
    frequent answers the first one wins. A response without an answer has no vote.

    Certainty: the rule is from a secondary note. ``tasks.verifiers.answer_in`` defines answers;
    equal means equal text. The graders' rewards are recorded as ``reward/judged_mean``.
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
    """ETTRL's forking rollouts, ETMR (arXiv 2508.11356): for each prompt, M responses are sampled
    whole. At the N = ``forks`` most uncertain tokens of each, B = ``branches`` others branch off.
    That makes M (1 + B N) in all, which is ``rollout.samples_per_prompt``. All of them vote (with
    ``majority_reward``) and are trained on.

    Certainty: ETMR-style. The tree is from a secondary note (M 12, N 2, B 2). We did not find how
    uncertainty is measured; here it is by the engine's twenty likeliest tokens. A forked token is
    sampled again, so it may be the same as before.
    """
    return replace(plan, fork=plans.Fork(settings.forks, settings.branches))
