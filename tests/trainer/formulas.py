"""One mini-batch's loss written from the formulas, on transformers' model: independent of the
trainer, of aent.algorithm.losses and of aent.entropy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from aent.data.batch import Batch
from aent.recipe.controls import NucleusAnchor
from aent.recipe.schema import Recipe


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def response_logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    """[N, V] logits that predict the response tokens, one sequence at a time."""
    bounds = batch.cu_seqlens.tolist()
    rows = []
    for start, end in itertools.pairwise(bounds):
        logits = model(batch.tokens[None, start:end]).logits[0]
        rows.append(logits[:-1][batch.loss_mask[start + 1 : end]])
    return torch.cat(rows)


@dataclass
class Expected:
    loss: Tensor
    log_prob: Tensor  # [N]
    entropy: Tensor  # [N]
    clamped_entropy: Tensor
    kept_mass: Tensor


def expected(
    model: torch.nn.Module, batch: Batch, recipe: Recipe, coefficient: float, drop: float = 0.33
) -> Expected:
    return expected_from_logits(response_logits(model, batch), batch, recipe, coefficient, drop)


def expected_from_logits(
    z: Tensor, batch: Batch, recipe: Recipe, coefficient: float, drop: float = 0.33
) -> Expected:
    mask = batch.loss_mask
    logp = torch.log_softmax(z / recipe.rollout.temperature, dim=-1)
    p = logp.exp()
    log_prob = logp.gather(1, batch.tokens[mask][:, None])[:, 0]
    vocab = z.shape[1]
    order = z.detach().sort(dim=1, descending=True, stable=True).indices
    keep = order[:, : vocab - int(vocab * drop)]
    logq = torch.log_softmax((z / recipe.rollout.temperature).gather(1, keep), dim=-1)
    clamped = -(logq.exp() * logq).sum(1)

    entropy = -(p * logp).sum(1)
    bonus = entropy if recipe.entropy.measure == "full" else clamped
    if batch.smoothing_weight is not None:
        low, high = batch.smoothing_low[mask], batch.smoothing_high[mask]
        outside = (low - bonus).clamp(min=0) + (bonus - high).clamp(min=0)
        bonus = bonus - batch.smoothing_weight[mask] * outside

    a = recipe.algorithm
    old = log_prob.detach() if batch.old_logprobs is None else batch.old_logprobs[mask]
    advantage, r = batch.advantages[mask], (log_prob - old).exp()
    if a.policy_loss == "gspo":  # one ratio a response, with a gradient of its own
        owner = batch.sequence_of_token[mask]
        per_response = [(log_prob - old)[owner == s].mean().exp() for s in owner.unique()]
        r = torch.stack(per_response)[owner]
    bounded = r.clamp(1 - a.clip_low, 1 + a.clip_high)
    surrogate = torch.min(r * advantage, bounded * advantage)
    if a.policy_loss == "cispo":
        surrogate = bounded.detach() * advantage * log_prob
    if a.dual_clip is not None:
        surrogate = torch.where(
            advantage < 0, torch.max(surrogate, a.dual_clip * advantage), surrogate
        )
    per_token = -surrogate
    if batch.importance is not None:
        per_token = per_token * batch.importance[mask]
    if batch.entropy_low is not None:
        h = entropy.detach()
        per_token = per_token * (h >= batch.entropy_low[mask]) * (h <= batch.entropy_high[mask])
    if batch.ratio_weight is not None:
        per_token = per_token - batch.ratio_weight[mask] * (log_prob - old).exp()
    if batch.old_kl_weight is not None:
        per_token = per_token + batch.old_kl_weight[mask] * (log_prob - old).abs()
    if batch.reference_logprobs is not None:
        d = batch.reference_logprobs[mask] - log_prob
        beta = a.kl_coefficient if batch.kl_weight is None else batch.kl_weight[mask]
        per_token = per_token + beta * (d.exp() - d - 1)
    loss = (batch.policy_weight[mask] * per_token).sum()
    loss = loss - coefficient * (batch.entropy_weight[mask] * bonus).sum()
    if batch.nucleus_weight is not None:
        nuclei = nucleus_entropies(z / recipe.rollout.temperature, recipe.control("nucleus_anchor"))
        loss = loss + (batch.nucleus_weight[mask] * nuclei).sum()
    return Expected(
        loss,
        log_prob.detach(),
        entropy.detach(),
        clamped.detach(),
        p.gather(1, keep).sum(1).detach(),
    )


def nucleus_entropies(z: Tensor, settings: NucleusAnchor) -> Tensor:
    """[N] of tempered logits [N, V]: renormalised on the smallest set that reaches top_p."""
    ordered = z.sort(dim=1, descending=True).values
    p = ordered.softmax(dim=1)
    before = p.cumsum(dim=1) - p
    kept = (before < settings.top_p) & (torch.arange(z.shape[1]) < settings.top_k)
    log_q = ordered.masked_fill(~kept, -1e30).log_softmax(dim=1)
    return -(log_q.exp() * log_q).sum(1)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}
