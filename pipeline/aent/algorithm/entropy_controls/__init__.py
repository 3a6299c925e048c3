"""Published entropy controls besides AEnt's bonus, as data: where each acts, what it needs, and its
functions.

A control may change the step's rollouts before they are sampled (``plan``: temperature, responses
per prompt, rewards; ``sampling`` carries it out). It may change the terms of the step's loss after
the step has been scored by the policy before its first update (``apply``). ``apply`` runs once a
step over all its response tokens, and identically on every rank, so quantiles and covariances are
those of the whole step for any layout. Public code computes them within a micro-batch, from the
forward pass that is trained on; with one mini-batch per step that is the same policy. Of
``LossTerms`` a control may change

- ``advantages``,
- ``token_weight``, a factor on each token's surrogate (denominators do not change),
- ``old_kl_weight``, ``ratio_weight``, ``reference``, ``nucleus_weight``, ``proxy_weight``: terms
  added to the loss,
- ``entropy_gate``, ``clipped_gradient``: a gate of the gradient,
- ``entropy_weight``, ``smoothing``: the entropy bonus.

A control's memory from step to step is part of the checkpoint, and its numbers are recorded
(``control/KIND/NAME``). The coefficient of the entropy bonus has its own controllers
(``entropy.controllers``), and clip-higher is ``algorithm.clip_high``.
"""

from __future__ import annotations

from dataclasses import replace

from aent.algorithm.entropy_controls import advantages, coefficient, rollouts, terms, weights
from aent.algorithm.entropy_controls.base import Context, Control, Memory, Need
from aent.algorithm.entropy_controls.plan import Plan
from aent.algorithm.terms import LossTerms
from aent.recipe.controls import EntropyControl
from aent.recipe.schema import Recipe

CONTROLS: dict[str, Control] = {
    "top_entropy_tokens": Control("scores", apply=weights.top_entropy_tokens),
    "clip_cov": Control("scores", apply=weights.clip_cov),
    "kl_cov": Control("scores", apply=terms.kl_cov),
    "entropy_advantage": Control("scores", apply=advantages.entropy_advantage),
    "response_entropy_advantage": Control("scores", apply=advantages.response_entropy_advantage),
    "advantage_clip": Control(apply=advantages.advantage_clip),
    "entropy_ratio_clip": Control("scores", apply=weights.entropy_ratio_clip),
    "advantage_kl": Control("reference", apply=terms.advantage_kl),
    "entropy_smoothing": Control("scores", apply=coefficient.entropy_smoothing),
    "difficulty_coefficient": Control(apply=coefficient.difficulty_coefficient),
    "probability_push": Control("scores", apply=terms.probability_push),
    "nucleus_anchor": Control("nucleus_entropies", apply=terms.nucleus_anchor),
    "temperature_schedule": Control(
        "scores",
        plan=rollouts.at_temperature,
        apply=rollouts.temperature_schedule,
    ),
    "rollout_budget": Control(plan=rollouts.within_budget, apply=rollouts.rollout_budget),
    "reroll": Control("scores", plan=rollouts.with_reroll, apply=rollouts.reroll),
    "majority_reward": Control(plan=rollouts.by_majority),
    "forked_rollouts": Control(plan=rollouts.in_trees),
    "sample_switch": Control("scores", apply=weights.sample_switch),
    "surprise_boost": Control("scores", apply=advantages.surprise_boost),
    "entropy_change_weight": Control("scores", apply=weights.entropy_change_weight),
    "entropy_change_mask": Control("scores", apply=weights.entropy_change_mask),
    "quantile_baseline": Control(apply=advantages.quantile_baseline),
    "kept_gradient": Control("scores", apply=terms.kept_gradient),
    "low_probability_kl": Control("scores", apply=terms.low_probability_kl),
    "entropy_budget": Control("covariances", apply=weights.entropy_budget),
}


def plan(recipe: Recipe, memory: Memory) -> Plan:
    """The next step's rollouts; the same on every rank."""
    n = recipe.rollout.samples_per_prompt
    made = Plan(recipe.rollout.temperature, samples=lambda items: [n] * len(items))
    for settings in recipe.entropy_controls:
        change = CONTROLS[settings.kind].plan
        if change is not None:
            made = change(made, settings, memory.get(settings.kind, {}))
    return made


def apply(terms: LossTerms, context: Context, memory: Memory) -> tuple[LossTerms, Memory]:
    """Apply the recipe's controls to the terms, in the recipe's order. Returns the terms, and the
    controls' memory for the next step.

    Raises ValueError if the step lacks something that a control needs.
    """
    following: Memory = {}
    for settings in context.recipe.entropy_controls:
        control, needed = CONTROLS[settings.kind], need_of(settings)
        if needed is not None and not _has(terms, context, needed):
            raise ValueError(f"entropy control {settings.kind} needs {needed}: score first")
        if control.apply is None:
            continue
        own = replace(context, kept=memory.get(settings.kind, {}))
        effect = control.apply(terms, settings, own)
        terms = effect.terms
        if effect.kept is not None:
            following[settings.kind] = effect.kept
    return terms, following


def _has(terms: LossTerms, context: Context, needed: Need) -> bool:
    if needed == "reference":
        return terms.reference is not None
    if needed == "scores":
        return context.scored is not None
    return context.scored is not None and getattr(context.scored, needed) is not None


def need_of(settings: EntropyControl) -> Need | None:
    """What a control with these settings needs."""
    if getattr(settings, "exact", False):
        return "covariances"
    return CONTROLS[settings.kind].needs


def need_scores(recipe: Recipe) -> bool:
    """Whether a control needs results of the scoring pass."""
    needed = map(need_of, recipe.entropy_controls)
    return any(name not in (None, "reference") for name in needed)


def need_covariances(recipe: Recipe) -> bool:
    """Whether the scoring pass must compute them."""
    return "covariances" in map(need_of, recipe.entropy_controls)
