"""The loss of one micro-batch, on the last pipeline stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from aent.algorithm.losses import bound_log_ratio, entropy_bonus, policy_loss, sequence_log_ratio
from aent.entropy import TokenStatistics, linear_token_statistics, nucleus_entropy, token_statistics
from aent.entropy.head import CHUNK_TOKENS
from aent.entropy.statistics import PAPER_DROP_FRACTION
from aent.recipe.schema import Recipe
from aent.trainer import gradient_share
from aent.trainer.model import PolicyModel
from aent.trainer.packing import MicroBatch

# what is summed over the tokens of a mini-batch, in this order
SUMS = (
    "loss", "policy_loss", "entropy", "clamped_entropy", "kept_mass", "clip_fraction",
    "kl_behaviour", "logprob_gap", "kl_reference", "invalid_rows", "tokens",
    "policy_gradient_square", "entropy_gradient_square", "gradient_product",
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """What the loss needs of the policy besides a micro-batch's hidden states."""

    model: PolicyModel
    vocab_size: int  # true V
    temperature: float  # of the policy whose log-probs these are


@dataclass
class MicroBatchLoss:
    """One micro-batch's share of the mini-batch's loss."""

    loss: Tensor  # scalar fp32, differentiable
    sums: Tensor  # [len(SUMS)] float64
    log_prob: Tensor  # [N] fp32, detached
    entropy: Tensor  # [N] fp32, detached: the recipe's measure


def statistics(
    policy: Policy, hidden: Tensor, micro_batch: MicroBatch, recipe: Recipe
) -> TokenStatistics:
    """Statistics [N] of the tempered policy at the response tokens, from what ``run`` gave."""
    settings = _clamped_set(recipe) | _sharding(policy)
    targets = micro_batch.fields["targets"]
    chosen, weight = policy.model.head_inputs(hidden, micro_batch.predicts)
    if recipe.trainer.fused_head:
        main_grad = getattr(weight, "main_grad", None)  # Megatron's buffer
        return linear_token_statistics(chosen, weight, targets, weight_grad=main_grad, **settings)
    # The logits come straight from a matrix product, whose backward does not read them.
    logits = policy.model.logits(chosen, weight)
    return token_statistics(logits, targets, inplace_backward=True, **settings)


def nucleus_entropies(policy: Policy, hidden: Tensor, places: Tensor, recipe: Recipe) -> Tensor:
    """[n] entropies of the nuclei that ``nucleus_anchor`` names, of the tempered policy.

    Args:
        hidden: what ``run`` gave. places: [n] int64, into the packed tokens (``predicts``).
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
    policy: Policy, hidden: Tensor, micro_batch: MicroBatch, recipe: Recipe
) -> Tensor | None:
    """SIREN's term of the loss (``entropy_controls.terms.nucleus_anchor``), a scalar; None where no
    token of this micro-batch has one. It computes the logits of its few tokens anew."""
    weight = micro_batch.fields.get("nucleus_weight")
    if weight is None:
        return None
    (chosen,) = weight.nonzero(as_tuple=True)
    if not len(chosen):
        return None
    entropies = nucleus_entropies(policy, hidden, micro_batch.predicts[chosen], recipe)
    return (weight[chosen] * entropies).sum()


def micro_batch_loss(
    stats: TokenStatistics,
    micro_batch: MicroBatch,
    recipe: Recipe,
    coefficient: float,
    products: Tensor,
    further: Tensor | None = None,
) -> MicroBatchLoss:
    """Policy loss minus coefficient x entropy, each a weighted sum over this micro-batch's tokens.

    The weights (``policy_weight``, ``entropy_weight``) have the whole mini-batch's denominators, so
    its loss is the plain sum of these over micro-batches and data-parallel ranks. With coefficient
    0 the loss is the policy's alone, and no graph is kept for an entropy.

    Args:
        products: what ``gradient_products`` says of this micro-batch.
        further: a term that is added as it is (``nucleus_term``).
    """
    f = _fields(stats, micro_batch, recipe)
    policy = policy_loss(stats.log_prob, f, recipe.algorithm)
    loss = policy_term = (f["policy_weight"] * policy.loss).sum()
    clamped = recipe.entropy.measure == "clamped"
    entropy = stats.clamped_entropy if clamped else stats.entropy
    if coefficient != 0:
        loss = policy_term - coefficient * (f["entropy_weight"] * entropy_bonus(entropy, f)).sum()
    if further is not None:
        loss = loss + further
    log_prob = stats.log_prob.detach()
    gap = log_prob - f["behaviour_logprobs"]
    values = {
        "loss": loss.detach(),
        "policy_loss": policy_term.detach(),
        "entropy": stats.entropy.detach(),
        "clamped_entropy": stats.clamped_entropy.detach(),
        "kept_mass": stats.kept_mass,
        "clip_fraction": policy.clipped,
        "kl_behaviour": torch.expm1(bound_log_ratio(gap)) - bound_log_ratio(gap),
        "logprob_gap": gap.abs(),
        "kl_reference": policy.kl_reference if policy.kl_reference is not None else gap * 0,
        "invalid_rows": stats.invalid_rows,
        "tokens": torch.ones_like(gap),
    }
    values |= zip(SUMS[-3:], products)
    sums = torch.stack([values[name].double().sum() for name in SUMS])
    return MicroBatchLoss(loss, sums, log_prob, entropy.detach())


def gradient_products(
    policy: Policy,
    hidden: Tensor,
    stats: TokenStatistics,
    micro_batch: MicroBatch,
    recipe: Recipe,
    update: int,
) -> Tensor:
    """[3] float64 of ``gradient_share.gradient_products``; nothing here reaches the model's graph.

    update: number of the optimizer step, from 0, by which the tokens are drawn.
    """
    count, first = len(micro_batch.predicts), int(micro_batch.index[0])
    chosen = gradient_share.sampled_tokens(count, hidden.device, recipe.seed, update, first)
    with torch.no_grad():
        inputs = policy.model.head_inputs(hidden, micro_batch.predicts[chosen])
        logits = policy.model.logits(*inputs)
    logits.requires_grad_()
    every = _fields(stats, micro_batch, recipe)
    fields = {name: value[chosen] for name, value in every.items()}
    settings = _clamped_set(recipe) | _sharding(policy)
    sampled = token_statistics(logits, fields["targets"], **settings)
    return gradient_share.gradient_products(logits, sampled, fields, recipe, count)


def _fields(stats: TokenStatistics, micro_batch: MicroBatch, recipe: Recipe) -> dict[str, Tensor]:
    """[N] each: what the policy loss wants of every token besides its log-prob."""
    fields = dict(micro_batch.fields)
    if recipe.algorithm.policy_loss == "gspo" and "old_logprobs" in fields:
        # a micro-batch holds whole sequences, so the ratio needs no other rank
        fields["sequence_log_ratio"] = sequence_log_ratio(
            stats.log_prob, fields["old_logprobs"], fields["sequence"]
        )
    fields["entropy"] = stats.entropy.detach()
    return fields


def _clamped_set(recipe: Recipe) -> dict[str, Any]:
    """Which tokens the recipe's clamped entropy keeps."""
    drop_fraction, top_k = recipe.entropy.drop_fraction, recipe.entropy.top_k
    if drop_fraction is None and top_k is None:
        drop_fraction = PAPER_DROP_FRACTION
    return {"drop_fraction": drop_fraction, "top_k": top_k}


def _sharding(policy: Policy) -> dict[str, Any]:
    """Of which policy, and how its vocabulary lies on these ranks."""
    group = parallel_state.get_tensor_model_parallel_group()
    return {
        "temperature": policy.temperature,
        "vocab_size": policy.vocab_size,
        "tp_group": group if group.size() > 1 else None,
    }
