"""Entropy controls that add a term to the loss of a token."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from aent.algorithm import aggregation
from aent.algorithm.entropy_controls.base import Context, Effect, over_response
from aent.algorithm.terms import ClippedGradient, LossTerms
from aent.data.batch import Batch
from aent.recipe.controls.terms import (
    AdvantageKl,
    KeptGradient,
    KlCov,
    LowProbabilityKl,
    NucleusAnchor,
    ProbabilityPush,
)


def kl_cov(terms: LossTerms, settings: KlCov, context: Context) -> Effect:
    """KL-Cov (arXiv 2505.22617): + coefficient * abs(log pi - log pi_old) in the loss of the
    ``share`` of response tokens (at least one) with the highest covariance.

    Certainty: as in verl (read), whose base loss has no clip (``clip_low: 1`` and a large
    ``clip_high`` give that) and which takes the covariance within a micro-batch, from the log-probs
    in training. The default share is the paper's for 7B (k = 0.2 percent; 32B: 0.02).
    """
    cov = covariance(terms, context)
    weight = torch.zeros(cov.numel())
    weight[cov.topk(max(1, int(settings.share * cov.numel()))).indices] = settings.coefficient
    return Effect(replace(terms, old_kl_weight=over_response(context.batch, weight)))


def advantage_kl(terms: LossTerms, _settings: AdvantageKl, context: Context) -> Effect:
    """ADRPO (arXiv 2510.18053): the KL to the reference has weight max(0, kl_coefficient - A), more
    for a worse response.

    Certainty: ADRPO-style. The rule is from a secondary note; no bound was found in it, and that at
    0 is ours, without which a good response would be pushed away from the reference.
    ``policy/kl_clamped_share`` says for how many tokens it holds.
    """
    assert terms.reference is not None
    coefficient = context.recipe.algorithm.kl_coefficient
    weight = (coefficient - terms.advantages).clamp(min=0) * context.batch.loss_mask
    return Effect(replace(terms, reference=replace(terms.reference, weight=weight)))


def probability_push(terms: LossTerms, settings: ProbabilityPush, context: Context) -> Effect:
    """EntroPIC (arXiv 2511.15248): - c ratio abs(A) in the loss, averaged over the tokens whose old
    probability is above ``probability``;

        c = clip(proportional_gain (H - target) + integral_gain I, -1, 1)

    H is the mean entropy of this step, I the sum of H - target over all earlier steps. If the
    entropy is too low, the policy becomes less certain of its likely tokens; if it is too high,
    more.

    Certainty: as in its public code, which was read in part (the paper weights positive and
    negative samples); that likely means above 0.95 is from memory. That code controls once
    a micro-batch, by the log-probs in training, and adds to I with each; here it is once a step, by
    the old ones. Its mean over the likely tokens is the recipe's aggregation of them here, divided
    by the step's share of likely tokens: for ``token_mean`` the same.
    """
    mask = context.batch.loss_mask
    error = context.mean_entropy - settings.target
    integral = context.kept.get("integral", 0.0)
    push = settings.proportional_gain * error + settings.integral_gain * integral
    push = min(max(push, -1.0), 1.0)
    likely = (context.scores.logprobs > math.log(settings.probability)) & mask
    share = float(likely.sum() / mask.sum())
    if share:
        terms = replace(terms, ratio_weight=push / share * terms.advantages.abs() * likely)
    return Effect(terms, {"push": push, "integral": integral + error})


def nucleus_anchor(terms: LossTerms, settings: NucleusAnchor, context: Context) -> Effect:
    """SIREN (arXiv 2509.25133): + coefficient (M - anchor)^2 in the loss. M is a mean over
    responses, of the mean over the tokens of a response above its (1 - ``share``) quantile (0 where
    none is), of the entropy renormalized on the token's nucleus (``top_p``, at most ``top_k``
    tokens). The anchor is M at the first step, where the term is 0: M is kept from falling and from
    rising.

    M is of the whole step, before its first update, so that its gradient becomes a weight per
    token: 2 coefficient (M - anchor) dM. For a step of one mini-batch that is the gradient of the
    square itself.

    Certainty: as in its public code (read), with two differences. That code's nucleus excludes the
    token that crosses top_p; here it is included, as usual (``entropy.nucleus``). And that code
    squares the deviation of each micro-batch.
    """
    batch, entropies = context.batch, context.scores.nucleus_entropies
    assert entropies is not None
    weight = torch.zeros_like(entropies)
    for tokens in response_tokens(batch):
        chosen = tokens[entropies[tokens] > entropies[tokens].quantile(1 - settings.share)]
        weight[chosen] = len(tokens) / max(len(chosen), 1)
    mean = float((aggregation.sequence_mean(batch) * weight * entropies).double().sum())
    anchor = context.kept.get("anchor", mean)
    count = context.recipe.trainer.mini_batches
    of_mini_batch = aggregation.per_mini_batch(batch, count, aggregation.sequence_mean)
    slope = 2 * settings.coefficient * (mean - anchor) * weight
    return Effect(
        replace(terms, nucleus_weight=slope * of_mini_batch), {"anchor": anchor, "mean": mean}
    )


def kept_gradient(terms: LossTerms, settings: KeptGradient, context: Context) -> Effect:
    """CE-GPPO (arXiv 2509.20712): a token that PPO's clip cuts has -beta (1 +- eps) / sg(r) r A in
    the loss, beta ``low`` where r < 1 - eps and A < 0, ``high`` where r > 1 + eps and A > 0: the
    gradient beta (1 +- eps) A of its log-prob instead of none.

    Certainty: as in its public code (read); its betas are 0.25 and 1.
    """
    mask = context.batch.loss_mask.float()
    kept = ClippedGradient(low=settings.low * mask, high=settings.high * mask)
    return Effect(replace(terms, clipped_gradient=kept))


def low_probability_kl(terms: LossTerms, settings: LowProbabilityKl, context: Context) -> Effect:
    """Lp-Reg (arXiv 2510.03222): + coefficient KL(q || pi) in the loss of the ``share`` of the
    response tokens with A < 0 (at least one, where there are any) that were least likely (log
    pi_old), unless a token is noise: less likely than ``ratio`` times the likeliest one. q is the
    policy without such noise, renormalized and constant (``entropy.min_p``): it moves the noise's
    probability to the remaining tokens.

    Certainty: the paper's term, with its public code's selection and constants (read). That code
    takes q from the old policy and estimates the KL by the sampled token alone (k3); it has no
    clip for the chosen tokens; and it chooses them within a micro-batch.
    """
    mask = context.batch.loss_mask
    log_probs = context.scores.logprobs[mask]
    punished = (terms.advantages[mask] < 0).nonzero()[:, 0]
    weight = torch.zeros_like(log_probs)
    if len(punished):
        count = max(1, int(settings.share * len(punished)))
        unlikely = log_probs[punished].topk(count, largest=False).indices
        weight[punished[unlikely]] = settings.coefficient
    proxy_weight = over_response(context.batch, weight) * terms.policy_weight
    return Effect(replace(terms, proxy_weight=proxy_weight))


def response_tokens(batch: Batch) -> list[Tensor]:
    """The indices of each response's tokens."""
    places = batch.loss_mask.nonzero()[:, 0]
    return list(places.split(batch.response_lengths.tolist()))


def covariance(terms: LossTerms, context: Context) -> Tensor:
    """[N] fp32: (A - mean A) (log pi_old - mean log pi_old) of each response token, means over all
    of the step's (arXiv 2505.22617: a token's contribution to the fall of the entropy). As in the
    paper it is an approximation, for a policy with one parameter for each token in each state, and
    means over states. ``Context.covariances`` is exact for a token's own logits.
    """
    mask = context.batch.loss_mask
    advantages, log_probs = terms.advantages[mask].double(), context.scores.logprobs[mask].double()
    return ((advantages - advantages.mean()) * (log_probs - log_probs.mean())).float()
