"""The field's entropy controls beside AEnt's bonus, as data: where each acts, what it needs, and
the functions that do it.

A control may change the step's rollouts before they are sampled (``plan``: temperature, responses
per prompt, what the rewards are; ``sampling`` carries it out), and the step's batch after it has
been scored by the policy before the step's first update (``apply``). The latter is done once a
step over all its response tokens, on every rank alike: quantiles and covariances are those of the
whole step whatever the layout. Public code computes them within a micro-batch, from the forward
that is about to be learnt from; with one mini-batch a step that is the same policy. It may change

- the advantages (``Batch.advantages``),
- a factor on each token's surrogate (``Batch.importance``; denominators stay as they are),
- a term of the loss (``Batch.old_kl_weight``, ``kl_weight``, ``ratio_weight``, ``nucleus_weight``),
- a gate of the gradient (``Batch.entropy_low``, ``Batch.entropy_high``),
- the entropy bonus (``Batch.entropy_factor``, ``smoothing_low``, ``smoothing_high``).

What a control keeps from step to step is part of the checkpoint, and its numbers are recorded
(``control/KIND/NAME``). The coefficient of the entropy bonus has controllers of its own
(``entropy.controllers``), and clip-higher is ``algorithm.clip_high``.
"""

from __future__ import annotations

from aent.algorithm.entropy_controls import advantages, coefficient, rollouts, terms, weights
from aent.algorithm.entropy_controls.base import Context, Control, Memory
from aent.algorithm.entropy_controls.plan import Plan
from aent.data.batch import Batch
from aent.recipe.schema import Recipe

CONTROLS: dict[str, Control] = {
    "top_entropy_tokens": Control("old_entropies", apply=weights.top_entropy_tokens),
    "clip_cov": Control("old_logprobs", apply=weights.clip_cov),
    "kl_cov": Control("old_logprobs", apply=terms.kl_cov),
    "entropy_advantage": Control("old_entropies", apply=advantages.entropy_advantage),
    "response_entropy_advantage": Control(
        "old_entropies", apply=advantages.response_entropy_advantage
    ),
    "advantage_clip": Control(apply=advantages.advantage_clip),
    "entropy_ratio_clip": Control("old_entropies", apply=weights.entropy_ratio_clip),
    "advantage_kl": Control("reference_logprobs", apply=terms.advantage_kl),
    "entropy_smoothing": Control("old_entropies", apply=coefficient.entropy_smoothing),
    "difficulty_coefficient": Control(apply=coefficient.difficulty_coefficient),
    "probability_push": Control("old_entropies", apply=terms.probability_push),
    "nucleus_anchor": Control("old_nucleus_entropies", apply=terms.nucleus_anchor),
    "temperature_schedule": Control(
        "old_entropies",
        plan=rollouts.at_temperature,
        apply=rollouts.temperature_schedule,
    ),
    "rollout_budget": Control("item", plan=rollouts.within_budget, apply=rollouts.rollout_budget),
    "reroll": Control("old_entropies", plan=rollouts.with_reroll, apply=rollouts.reroll),
    "majority_reward": Control(plan=rollouts.by_majority),
    "forked_rollouts": Control(plan=rollouts.in_trees),
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


def apply(batch: Batch, recipe: Recipe, step: int, vocab_size: int, memory: Memory) -> Memory:
    """Apply the recipe's controls in their order to a batch that has its ``advantages``; return
    what they keep for the next step.

    Raises ValueError if the batch lacks what a control needs.
    """
    following: Memory = {}
    for settings in recipe.entropy_controls:
        control = CONTROLS[settings.kind]
        if control.needs is not None and getattr(batch, control.needs) is None:
            raise ValueError(f"entropy control {settings.kind} needs {control.needs}: score first")
        if control.apply is None:
            continue
        context = Context(recipe, step, vocab_size, memory.get(settings.kind, {}))
        kept = control.apply(batch, settings, context)
        if kept is not None:
            following[settings.kind] = kept
    return following


def need_scores(recipe: Recipe) -> bool:
    """Whether a control asks for what the scoring pass says of the batch."""
    needed = (CONTROLS[settings.kind].needs for settings in recipe.entropy_controls)
    return any(name is not None and name.startswith("old_") for name in needed)
