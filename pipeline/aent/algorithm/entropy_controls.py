"""The field's entropy controls beside AEnt's bonus, as data: where each acts, what it needs, and
the function that does it.

What is here needs the batch alone, scored by the policy before the step's first update ("old":
``Batch.old_logprobs``, ``Batch.old_entropies``), and is done once a step over all its response
tokens, on every rank alike: quantiles and covariances are those of the whole step whatever the
layout. Public code computes them within a micro-batch, from the forward that is about to be
learnt from; with one mini-batch a step that is the same policy. A control may change

- the advantages (``Batch.advantages``),
- a factor on each token's surrogate (``Batch.importance``; denominators stay as they are),
- a term of the loss (``Batch.old_kl_weight``, ``Batch.kl_weight``),
- a gate of the gradient (``Batch.entropy_low``, ``Batch.entropy_high``).

The coefficient of the entropy bonus has controllers of its own (``entropy.controllers``), and
clip-higher is ``algorithm.clip_high``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from aent.batch import Batch
from aent.recipe.schema import (
    AdvantageKl,
    ClipCov,
    EntropyAdvantage,
    EntropyRatioClip,
    KlCov,
    Recipe,
    ResponseEntropyAdvantage,
    TopEntropyTokens,
)


@dataclass(frozen=True)
class Control:
    """One control of the registry."""

    acts_on: Literal["advantage", "token weight", "loss term", "gradient gate"]
    # the field of the batch, by the scoring pass
    needs: Literal["old_entropies", "old_logprobs", "reference_logprobs"]
    apply: Callable[[Batch, Any, Context], None]


@dataclass(frozen=True)
class Context:
    """What a control may ask for besides the batch and its own settings."""

    recipe: Recipe
    step: int

    def generator(self) -> torch.Generator:
        """For what is drawn at random: the same on every rank, and when the step is executed
        again."""
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)


def apply(batch: Batch, recipe: Recipe, step: int) -> None:
    """Apply the recipe's controls in their order to a batch that has its ``advantages``.

    Raises ValueError if the batch lacks what a control needs.
    """
    context = Context(recipe, step)
    for settings in recipe.entropy_controls:
        control = CONTROLS[settings.kind]
        if getattr(batch, control.needs) is None:
            raise ValueError(f"entropy control {settings.kind} needs {control.needs}: score first")
        control.apply(batch, settings, context)


def top_entropy_tokens(batch: Batch, settings: TopEntropyTokens, _: Context) -> None:
    """80/20 (arXiv 2506.01939): only the ``share`` of the step's response tokens with the highest
    entropy have a policy loss; ties at the threshold are kept.

    Certainty: the rule is the paper's; the quantile over the batch is from memory, TRL's
    top_entropy_quantile (read) takes it over the micro-batches of all ranks, one other copy within
    each response. The mean's denominator keeps counting every token (TRL).
    """
    entropies = old_entropies(batch)
    chosen = math.ceil(settings.share * entropies.numel())
    threshold = entropies.topk(chosen).values[-1]
    weigh(batch, entropies >= threshold)


def clip_cov(batch: Batch, settings: ClipCov, context: Context) -> None:
    """Clip-Cov (arXiv 2505.22617): tokens drawn from those with low < cov < high, ``share`` of all
    response tokens (at least one), have no policy loss.

    Certainty: as in verl (read), which takes the covariance within a micro-batch, from the
    log-probs in training, and leaves out tokens that PPO's clip has cut; old log-probs have none.
    """
    cov = covariance(batch)
    candidates = ((cov > settings.low) & (cov < settings.high)).nonzero()[:, 0]
    count = max(1, int(settings.share * cov.numel()))
    order = torch.randperm(candidates.numel(), generator=context.generator())
    kept = torch.ones(cov.numel(), dtype=torch.bool)
    kept[candidates[order[:count]]] = False
    weigh(batch, kept)


def kl_cov(batch: Batch, settings: KlCov, _: Context) -> None:
    """KL-Cov (arXiv 2505.22617): + coefficient * abs(log pi - log pi_old) in the loss of the
    ``share`` of response tokens (at least one) with the highest covariance.

    Certainty: as in verl (read), whose base loss has no clip (``clip_low: 1`` and a large
    ``clip_high`` give that) and which takes the covariance within a micro-batch, from the log-probs
    in training. The default share is the paper's for 7B (k = .2 percent; 32B: .02).
    """
    cov = covariance(batch)
    weight = torch.zeros(cov.numel())
    weight[cov.topk(max(1, int(settings.share * cov.numel()))).indices] = settings.coefficient
    batch.old_kl_weight = over_response(batch, weight)


def entropy_advantage(batch: Batch, settings: EntropyAdvantage, _: Context) -> None:
    """A + min(scale * H, abs(A) / limit) per token (arXiv 2506.14758): more for uncertain tokens,
    never enough to turn a sign.

    Certainty: from a secondary note and public code; whose H, the old policy's or that in training,
    is our choice (old). The paper's scale is .4 with GRPO and .1 with PPO, its limit 2.
    """
    assert batch.advantages is not None
    advantages = batch.advantages[batch.loss_mask]
    bonus = torch.minimum(settings.scale * old_entropies(batch), advantages.abs() / settings.limit)
    batch.advantages = over_response(batch, advantages + bonus)


def response_entropy_advantage(
    batch: Batch, _settings: ResponseEntropyAdvantage, _: Context
) -> None:
    """ETTRL's EAR (arXiv 2508.11356): A * max(0, 1 + (mean H of the group - H_i) / mean H of the
    group), H_i the mean entropy of response i: less for a response that was uncertain.

    Certainty: EAR-style. The rule is from a secondary note; the bound at 0, without which a very
    uncertain response would learn the opposite, is ours; so is the mean of the group as that of its
    responses' means.
    """
    assert batch.advantages is not None
    owner = batch.sequence_of_token[batch.loss_mask]
    total = torch.zeros(batch.num_sequences).index_add(0, owner, old_entropies(batch))
    entropy = total / batch.response_lengths
    _, group = torch.unique(batch.group, return_inverse=True)
    sums = torch.zeros(int(group.max()) + 1).index_add(0, group, entropy)
    mean = (sums / torch.bincount(group))[group]
    factor = torch.where(mean > 0, 1 + (mean - entropy) / mean, 1.0).clamp(min=0)
    batch.advantages = batch.advantages * factor[batch.sequence_of_token]


def entropy_ratio_clip(batch: Batch, settings: EntropyRatioClip, _: Context) -> None:
    """ERC (arXiv 2512.05591): a token has no policy loss while its entropy, in the forward that is
    learnt from, is below 1 - low or above 1 + high times its old entropy.

    Certainty: ERC-style. The rule is from a secondary note, the bounds (1 +- .05) from memory; that
    it is a gate on the surrogate beside PPO's clip, and nothing else, is our reading.
    """
    old = over_response(batch, old_entropies(batch))
    batch.entropy_low, batch.entropy_high = (1 - settings.low) * old, (1 + settings.high) * old


def advantage_kl(batch: Batch, _settings: AdvantageKl, context: Context) -> None:
    """ADRPO (arXiv 2510.18053): the KL to the reference weighs max(0, kl_coefficient - A), more for
    a response that did badly.

    Certainty: ADRPO-style. The rule is from a secondary note; no bound was found in it, and that at
    0 is ours, without which a good response would be pushed away from the reference.
    ``policy/kl_clamped_share`` says for how many tokens it holds.
    """
    assert batch.advantages is not None
    coefficient = context.recipe.algorithm.kl_coefficient
    weight = (coefficient - batch.advantages[batch.loss_mask]).clamp(min=0)
    batch.kl_weight = over_response(batch, weight)


CONTROLS: dict[str, Control] = {
    "top_entropy_tokens": Control("token weight", "old_entropies", top_entropy_tokens),
    "clip_cov": Control("token weight", "old_logprobs", clip_cov),
    "kl_cov": Control("loss term", "old_logprobs", kl_cov),
    "entropy_advantage": Control("advantage", "old_entropies", entropy_advantage),
    "response_entropy_advantage": Control("advantage", "old_entropies", response_entropy_advantage),
    "entropy_ratio_clip": Control("gradient gate", "old_entropies", entropy_ratio_clip),
    "advantage_kl": Control("loss term", "reference_logprobs", advantage_kl),
}


def covariance(batch: Batch) -> Tensor:
    """[N] fp32: (A - mean A) (log pi_old - mean log pi_old) of each response token, means over all
    of the step's (arXiv 2505.22617: what a token contributes to the fall of the entropy)."""
    assert batch.advantages is not None
    assert batch.old_logprobs is not None
    advantages = batch.advantages[batch.loss_mask].double()
    log_probs = batch.old_logprobs[batch.loss_mask].double()
    return ((advantages - advantages.mean()) * (log_probs - log_probs.mean())).float()


def old_entropies(batch: Batch) -> Tensor:
    """[N] fp32: of the response tokens, nats."""
    assert batch.old_entropies is not None
    return batch.old_entropies[batch.loss_mask]


def weigh(batch: Batch, factor: Tensor) -> None:
    """Multiply the surrogate of each response token by ``factor`` [N]."""
    before = 1.0 if batch.importance is None else batch.importance
    batch.importance = over_response(batch, factor.float()) * before


def over_response(batch: Batch, values: Tensor) -> Tensor:
    """[T] fp32: ``values`` [N] at the response tokens, 0 elsewhere."""
    flat = torch.zeros(batch.tokens.numel())
    flat[batch.loss_mask] = values
    return flat
