"""One mini-batch's loss written from the formulas, on transformers' model: independent of the
trainer, of aent.algorithm.losses and of aent.entropy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from aent.algorithm.terms import MiniBatch
from aent.data.batch import Batch
from aent.recipe.controls.terms import NucleusAnchor
from aent.recipe.schema import Recipe


def load(path: Path) -> torch.nn.Module:
    """In transformers' plain attention: the others leave out a softcap of its scores."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )


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
    model: torch.nn.Module, mini: MiniBatch, recipe: Recipe, coefficient: float, drop: float = 0.33
) -> Expected:
    z = response_logits(model, mini.batch)
    return expected_from_logits(z, mini, recipe, coefficient, drop)


def expected_from_logits(
    z: Tensor, mini: MiniBatch, recipe: Recipe, coefficient: float, drop: float = 0.33
) -> Expected:
    batch, terms = mini.batch, mini.terms
    mask = batch.loss_mask
    logp = torch.log_softmax(z / batch.temperature, dim=-1)
    p = logp.exp()
    log_prob = logp.gather(1, batch.tokens[mask][:, None])[:, 0]
    vocab = z.shape[1]
    order = z.detach().sort(dim=1, descending=True, stable=True).indices
    keep = order[:, : vocab - int(vocab * drop)]
    logq = torch.log_softmax((z / batch.temperature).gather(1, keep), dim=-1)
    clamped = -(logq.exp() * logq).sum(1)

    entropy = -(p * logp).sum(1)
    bonus = entropy if recipe.entropy.measure == "full" else clamped
    if terms.smoothing is not None:
        low, high = terms.smoothing.low[mask], terms.smoothing.high[mask]
        outside = (low - bonus).clamp(min=0) + (bonus - high).clamp(min=0)
        bonus = bonus - terms.smoothing.weight[mask] * outside

    a = recipe.algorithm
    old = log_prob.detach() if terms.old_logprobs is None else terms.old_logprobs[mask]
    advantage, r = terms.advantages[mask], (log_prob - old).exp()
    if a.policy_loss == "gspo":  # one ratio a response, with a gradient of its own
        owner = batch.sequence_of_token[mask]
        per_response = [(log_prob - old)[owner == s].mean().exp() for s in owner.unique()]
        r = torch.stack(per_response)[owner]
    if terms.zeta is not None:
        factor = 1 - terms.zeta[mask] * advantage.sign() * log_prob.detach()
        advantage = advantage * factor.clamp(min=0)
    high = a.clip_high if terms.clip_high is None else terms.clip_high[mask]
    bounded = torch.min(r.clamp(min=1 - a.clip_low), 1 + high * torch.ones_like(r))
    surrogate = torch.min(r * advantage, bounded * advantage)
    if terms.clipped_gradient is not None:
        shares = terms.clipped_gradient
        share = torch.where(advantage > 0, shares.high[mask], shares.low[mask])
        cut = (bounded * advantage < r * advantage).detach()
        # beta (1 +- eps) / sg(r) r A, the bound being where the cut ratio is
        kept = share * bounded.detach() / r.detach() * r * advantage
        surrogate = torch.where(cut, kept, surrogate)
    if a.policy_loss == "cispo":
        surrogate = bounded.detach() * advantage * log_prob
    if a.dual_clip is not None:
        surrogate = torch.where(
            advantage < 0, torch.max(surrogate, a.dual_clip * advantage), surrogate
        )
    per_token = -surrogate
    for factor in (terms.correction, terms.token_weight):
        if factor is not None:
            per_token = per_token * factor[mask]
    if terms.entropy_gate is not None:
        h, gate = entropy.detach(), terms.entropy_gate
        per_token = per_token * (h >= gate.low[mask]) * (h <= gate.high[mask])
    if terms.ratio_weight is not None:
        per_token = per_token - terms.ratio_weight[mask] * (log_prob - old).exp()
    if terms.old_kl_weight is not None:
        per_token = per_token + terms.old_kl_weight[mask] * (log_prob - old).abs()
    if terms.reference is not None:
        d = terms.reference.logprobs[mask] - log_prob
        per_token = per_token + terms.reference.weight[mask] * (d.exp() - d - 1)
    loss = (terms.policy_weight[mask] * per_token).sum()
    loss = loss - coefficient * (terms.entropy_weight[mask] * bonus).sum()
    if terms.nucleus_weight is not None:
        nuclei = nucleus_entropies(z / batch.temperature, recipe.control("nucleus_anchor"))
        loss = loss + (terms.nucleus_weight[mask] * nuclei).sum()
    if terms.proxy_weight is not None:
        ratio = recipe.control("low_probability_kl").ratio
        kl = proxy_divergences(logp, batch.tokens[mask], ratio)
        loss = loss + (terms.proxy_weight[mask] * kl).sum()
    return Expected(
        loss,
        log_prob.detach(),
        entropy.detach(),
        clamped.detach(),
        p.gather(1, keep).sum(1).detach(),
    )


def nucleus_entropies(z: Tensor, settings: NucleusAnchor) -> Tensor:
    """[N] of tempered logits [N, V]: renormalized on the smallest set that reaches top_p."""
    ordered = z.sort(dim=1, descending=True).values
    p = ordered.softmax(dim=1)
    before = p.cumsum(dim=1) - p
    kept = (before < settings.top_p) & (torch.arange(z.shape[1]) < settings.top_k)
    log_q = ordered.masked_fill(~kept, -1e30).log_softmax(dim=1)
    return -(log_q.exp() * log_q).sum(1)


def proxy_divergences(log_p: Tensor, targets: Tensor, ratio: float) -> Tensor:
    """[N] of log-probs [N, V]: sum of q log(q / p), with q a constant: p without the tokens that
    have less than ratio times the largest probability; 0 if the target is one of these."""
    p = log_p.detach().exp()
    noise = p < ratio * p.amax(dim=1, keepdim=True)
    q = p.masked_fill(noise, 0)
    q = q / q.sum(dim=1, keepdim=True)
    kl = torch.where(noise, 0, q * (q.clamp(min=1e-30).log() - log_p)).sum(1)
    return kl.masked_fill(noise.gather(1, targets[:, None])[:, 0], 0)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}
