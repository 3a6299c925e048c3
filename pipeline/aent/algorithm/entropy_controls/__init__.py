"""The field's entropy controls beside AEnt's bonus, as data: where each acts, what it needs, and
the functions that do it.

A control may change the step's rollouts before they are sampled (``plan``: temperature, responses
per prompt, what the rewards are; ``sampling`` carries it out), and the terms of the step's loss
after it has been scored by the policy before the step's first update (``apply``). The latter is
done once a step over all its response tokens, on every rank alike: quantiles and covariances are
those of the whole step whatever the layout. Public code computes them within a micro-batch, from
the forward that is about to be learnt from; with one mini-batch a step that is the same policy. Of
``LossTerms`` it may return changed

- ``advantages``,
- ``token_weight``, a factor on each token's surrogate (denominators stay as they are),
- ``old_kl_weight``, ``ratio_weight``, ``reference``, ``nucleus_weight``, ``proxy_weight``: what is
  added to the loss,
- ``entropy_gate``, ``clipped_gradient``: a gate of the gradient,
- ``entropy_weight``, ``smoothing``: the entropy bonus.

What a control keeps from step to step is part of the checkpoint, and its numbers are recorded
(``control/KIND/NAME``). The coefficient of the entropy bonus has controllers of its own
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
    """The terms as the recipe's controls leave them, one after the other in the recipe's order, and
    what the controls keep for the next step.

    Raises ValueError if the step lacks what a control needs.
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
    """What a control with these settings asks for."""
    if getattr(settings, "exact", False):
        return "covariances"
    return CONTROLS[settings.kind].needs


def need_scores(recipe: Recipe) -> bool:
    """Whether a control asks for what the scoring pass says of the batch."""
    needed = map(need_of, recipe.entropy_controls)
    return any(name not in (None, "reference") for name in needed)


def need_covariances(recipe: Recipe) -> bool:
    """Whether the scoring pass has to say them."""
    return "covariances" in map(need_of, recipe.entropy_controls)
