"""The loss of one micro-batch, on the last pipeline stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from aent.algorithm.losses import (
    InTraining,
    bound_log_ratio,
    entropy_bonus,
    policy_loss,
    sequence_log_ratio,
)
from aent.algorithm.terms import LossTerms, MiniBatch
from aent.data.flat import to_device
from aent.entropy import (
    TokenStatistics,
    VocabShard,
    linear_token_statistics,
    min_p_divergence,
    nucleus_entropy,
    token_statistics,
)
from aent.entropy.chunks import CHUNK_TOKENS
from aent.entropy.paper import PAPER_DROP_FRACTION
from aent.recipe.schema import Recipe
from aent.trainer import gradient_share
from aent.trainer.model import PolicyModel
from aent.trainer.packing import MicroBatch
from aent.trainer.result import PER_TOKEN, SUMMED


@dataclass(frozen=True)
class Policy:
    """What the loss needs from the policy besides a micro-batch's hidden states."""

    model: PolicyModel
    shard: VocabShard | None  # this rank's part of the vocabulary; None except on the last stage
    temperature: float  # of the policy that has these log-probs


@dataclass
class MicroBatchLoss:
    """One micro-batch's share of the mini-batch's loss."""

    loss: Tensor  # scalar fp32, differentiable
    sums: Tensor  # [len(SUMMED)] float64
    tokens: Tensor  # [len(PER_TOKEN), N] fp32, detached


def statistics(
    policy: Policy,
    hidden: Tensor,
    micro_batch: MicroBatch,
    recipe: Recipe,
    *,
    clamped: bool,
    slopes: bool = False,
) -> TokenStatistics:
    """Statistics [N] of the tempered policy at the response tokens, from the result of ``run``.

    Args:
        clamped: whether the clamped entropy is needed; if not, its set is not selected, and the
            field has the entropy. All other statistics are the same to the last bit.
        slopes: whether the exact covariance and the entropy's slope are needed.
    """
    everything = {"drop_fraction": None, "top_k": None}
    settings = (_clamped_set(recipe) if clamped else everything) | _sharding(policy)
    settings["slopes"] = slopes
    targets = micro_batch.targets
    chosen, weight = policy.model.head_inputs(hidden, micro_batch.predicts)
    if recipe.trainer.fused_head:
        main_grad = getattr(weight, "main_grad", None)  # Megatron's buffer
        return linear_token_statistics(chosen, weight, targets, weight_grad=main_grad, **settings)
    # The logits are the result of a matrix product, whose backward does not read them.
    logits = policy.model.logits(chosen, weight)
    return token_statistics(logits, targets, inplace_backward=True, **settings)


def nucleus_entropies(policy: Policy, hidden: Tensor, places: Tensor, recipe: Recipe) -> Tensor:
    """[n] entropies of the nuclei that ``nucleus_anchor`` names, of the tempered policy.

    Args:
        hidden: the result of ``run``. places: [n] int64, into the packed tokens (``predicts``).
    """
    settings = recipe.control("nucleus_anchor")
    entropies = []
    for part in places.split(CHUNK_TOKENS):
        logits = policy.model.logits(*policy.model.head_inputs(hidden, part))
        entropies.append(
            nucleus_entropy(logits, settings.top_p, settings.top_k, **_sharding(policy))
        )
    return torch.cat(entropies)


def nucleus_term(
    policy: Policy, hidden: Tensor, micro_batch: MicroBatch, terms: LossTerms, recipe: Recipe
) -> Tensor | None:
    """SIREN's term of the loss (``entropy_controls.terms.nucleus_anchor``), a scalar; None if no
    token of this micro-batch has one. It computes the logits of its few tokens again.

    terms: of this micro-batch's tokens, on the CPU: finding them on a device would wait for it."""
    if (few := _weighted(terms.nucleus_weight, hidden.device)) is None:
        return None
    chosen, weight = few
    places = micro_batch.predicts[chosen]
    return (weight * nucleus_entropies(policy, hidden, places, recipe)).sum()


def proxy_term(
    policy: Policy, hidden: Tensor, micro_batch: MicroBatch, terms: LossTerms, recipe: Recipe
) -> Tensor | None:
    """Lp-Reg's term of the loss (``entropy_controls.terms.low_probability_kl``), a scalar; None if
    no token of this micro-batch has one. It computes the logits of its few tokens again.

    terms: of this micro-batch's tokens, on the CPU, as for ``nucleus_term``."""
    if (few := _weighted(terms.proxy_weight, hidden.device)) is None:
        return None
    chosen, weights = few
    ratio = recipe.control("low_probability_kl").ratio
    total = torch.zeros((), device=hidden.device)
    for part, weight in zip(chosen.split(CHUNK_TOKENS), weights.split(CHUNK_TOKENS)):
        logits = policy.model.logits(*policy.model.head_inputs(hidden, micro_batch.predicts[part]))
        kl = min_p_divergence(logits, micro_batch.targets[part], ratio, **_sharding(policy))
        total = total + (weight * kl).sum()
    return total


def _weighted(weights: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """(places, weights) of the tokens whose weight, on the CPU, is not 0, both on ``device``; None
    if there are none."""
    if weights is None:
        return None
    (chosen,) = weights.nonzero(as_tuple=True)
    if not len(chosen):
        return None
    return to_device(chosen, device), to_device(weights[chosen], device)


def micro_batch_loss(
    policy: Policy,
    hidden: Tensor,
    micro_batch: MicroBatch,
    mini_batch: MiniBatch,
    recipe: Recipe,
    coefficient: float,
    update: int,
) -> MicroBatchLoss:
    """Policy loss minus coefficient x entropy bonus, each a weighted sum over this micro-batch's
    tokens, and the terms of nuclei and proxies.

    The weights contain the whole mini-batch's denominators, so its loss is the plain sum of these
    over micro-batches, data-parallel and context-parallel ranks. With coefficient 0 no graph is
    kept for an entropy.

    Args:
        hidden: the result of ``run``.
        update: number of the optimizer step, from 0.
    """
    on_host = mini_batch.terms.at(micro_batch.index)
    terms = on_host.to(hidden.device)
    stats = statistics(policy, hidden, micro_batch, recipe, clamped=True)
    ratio = _sequence_ratio(stats.log_prob, terms, micro_batch, recipe)
    now = InTraining(stats.entropy.detach(), ratio)
    products = gradient_products(policy, hidden, now, terms, micro_batch, recipe, update)
    extra = (nucleus_term, proxy_term)
    more = [make(policy, hidden, micro_batch, on_host, recipe) for make in extra]
    of_policy = policy_loss(stats.log_prob, now, terms, recipe.algorithm)
    loss = policy_term = (terms.policy_weight * of_policy.loss).sum()
    clamped = recipe.entropy.measure == "clamped"
    entropy = stats.clamped_entropy if clamped else stats.entropy
    if coefficient != 0:
        bonus = entropy_bonus(entropy, terms.smoothing)
        loss = policy_term - coefficient * (terms.entropy_weight * bonus).sum()
    for term in more:
        if term is not None:
            loss = loss + term
    log_prob = stats.log_prob.detach()
    gap = log_prob - _behaviour(mini_batch, micro_batch, log_prob)
    values = {
        "loss": loss.detach(),
        "policy_loss": policy_term.detach(),
        "entropy": stats.entropy.detach(),
        "clamped_entropy": stats.clamped_entropy.detach(),
        "kept_mass": stats.kept_mass,
        "clip_fraction": of_policy.clipped,
        "kl_behaviour": torch.expm1(bound_log_ratio(gap)) - bound_log_ratio(gap),
        "kl_reference": gap * 0 if of_policy.kl_reference is None else of_policy.kl_reference,
        "invalid_rows": stats.invalid_rows,
        "tokens": torch.ones_like(gap),
        "policy_gradient_square": products[0],
        "entropy_gradient_square": products[1],
        "gradient_product": products[2],
    }
    told = {
        "logprobs": log_prob,
        "entropies": values["entropy"],
        "clamped_entropies": values["clamped_entropy"],
        "clipped": of_policy.clipped.float(),
    }
    sums = torch.stack([values[name].double().sum() for name in SUMMED])
    return MicroBatchLoss(loss, sums, torch.stack([told[name] for name in PER_TOKEN]))


def gradient_products(
    policy: Policy,
    hidden: Tensor,
    now: InTraining,
    terms: LossTerms,
    micro_batch: MicroBatch,
    recipe: Recipe,
    update: int,
) -> Tensor:
    """[3] float64 of ``gradient_share.gradient_products``; it does not affect the model's graph.

    update: number of the optimizer step, from 0, which determines the sampled tokens.
    """
    count, first = len(micro_batch.predicts), int(micro_batch.index[0])
    chosen = gradient_share.sampled_tokens(count, hidden.device, recipe.seed, update, first)
    with torch.no_grad():
        inputs = policy.model.head_inputs(hidden, micro_batch.predicts[chosen])
        logits = policy.model.logits(*inputs)
    logits.requires_grad_()
    settings = _clamped_set(recipe) | _sharding(policy)
    sampled = token_statistics(logits, micro_batch.targets[chosen], **settings)
    return gradient_share.gradient_products(
        logits, sampled, now.at(chosen), terms.at(chosen), recipe, count
    )


def loss_without_tokens(
    policy: Policy,
    hidden: Tensor,
    micro_batch: MicroBatch,
    mini_batch: MiniBatch,
    recipe: Recipe,
) -> Tensor:
    """``micro_batch_loss`` of a rank without response tokens in this micro-batch: 0, with the graph
    of ``hidden``. It takes part in the sums over context-parallel ranks."""
    terms = mini_batch.terms.at(micro_batch.index).to(hidden.device)
    _sequence_ratio(hidden.new_empty(0, dtype=torch.float32), terms, micro_batch, recipe)
    unused, _ = policy.model.head_inputs(hidden, micro_batch.predicts)
    return (unused * 0).sum()


def _sequence_ratio(
    log_prob: Tensor, terms: LossTerms, micro_batch: MicroBatch, recipe: Recipe
) -> Tensor | None:
    """[N] of ``sequence_log_ratio``, if the policy loss needs it. A micro-batch holds whole
    responses; context-parallel ranks have parts of them. Collective over these ranks."""
    if recipe.algorithm.policy_loss != "gspo" or terms.old_logprobs is None:
        return None
    ranks = parallel_state.get_context_parallel_group()
    return sequence_log_ratio(
        log_prob,
        terms.old_logprobs,
        micro_batch.sequence,
        micro_batch.responses,
        partial(dist.all_reduce, group=ranks) if ranks.size() > 1 else None,
    )


def _behaviour(mini_batch: MiniBatch, micro_batch: MicroBatch, log_prob: Tensor) -> Tensor:
    """[N] fp32: log-probs of the policy that sampled each token. A re-rolled response, sampled by
    another policy, has those before the step's first update: it does not count as mismatch."""
    batch, index, old = mini_batch.batch, micro_batch.index, mini_batch.terms.old_logprobs
    device = log_prob.device
    sampled, own = (
        to_device(x[index], device) for x in (batch.behaviour_logprobs, batch.own_tokens)
    )
    before = log_prob if old is None else to_device(old[index], device)
    return torch.where(own, sampled, before)


def _clamped_set(recipe: Recipe) -> dict[str, Any]:
    """The tokens that the recipe's clamped entropy keeps."""
    drop_fraction, top_k = recipe.entropy.drop_fraction, recipe.entropy.top_k
    if drop_fraction is None and top_k is None:
        drop_fraction = PAPER_DROP_FRACTION
    return {"drop_fraction": drop_fraction, "top_k": top_k}


def _sharding(policy: Policy) -> dict[str, Any]:
    """The policy's temperature, and how its vocabulary is split over these ranks."""
    return {
        "temperature": policy.temperature,
        "softcap": policy.model.logits_softcap,
        "tp_group": policy.shard,
    }
