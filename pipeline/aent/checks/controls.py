"""Checks of a recipe's entropy controls: required fields that are off, controls that exclude each
other, and contradictory values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from aent.entropy import controllers
from aent.entropy.paper import PAPER_DROP_FRACTION
from aent.recipe.schema import Recipe


def faults(recipe: Recipe) -> Iterator[str]:
    """One sentence per fault, naming the field."""
    yield from driven(recipe)
    kinds = [control.kind for control in recipe.entropy_controls]
    for index, control in enumerate(recipe.entropy_controls):
        name = f"entropy_controls[{index}] ({control.kind})"
        if control.kind in kinds[:index]:
            yield f"{name} appears twice"
        for rule in RULES.get(control.kind, ()):
            fault = rule(control, recipe)
            if fault:
                yield f"{name}{fault}"


def driven(recipe: Recipe) -> Iterator[str]:
    """The requirements of the controller's actuator."""
    controller = recipe.controller
    if controller.drives == "upper_clip" and recipe.trainer.mini_batches == 1:
        yield (
            "controller.drives=upper_clip changes nothing with trainer.mini_batches=1: every ratio "
            "is 1"
        )
    if controller.drives == "gradient_share" and controller.kind in controllers.KINDS:
        defaults = controllers.KINDS[controller.kind].defaults
        most = controller.initial if controller.kind == "constant" else controller.max
        most = defaults.get("max") if most is None else most
        if most is not None and most >= 1:
            name = "initial" if controller.kind == "constant" else "max"
            yield (
                f"controller.{name}={most:g} must be below 1 with controller.drives=gradient_share"
            )


def unreachable(recipe: Recipe, vocabulary: int) -> Iterator[str]:
    """A target or lower end above every entropy that the controller can measure over this many
    tokens: the coefficient would end at its maximum and stay there."""
    controller = recipe.controller
    aim = "low" if controller.target is None else "target"
    value = getattr(controller, aim)
    if controller.kind not in controllers.KINDS or value is None:
        return
    tokens, which = vocabulary, "of the vocabulary"
    if recipe.measured == "clamped_entropy":
        which = "of the clamped set"
        dropped, top_k = recipe.entropy.drop_fraction, recipe.entropy.top_k
        dropped = PAPER_DROP_FRACTION if dropped is None else dropped
        tokens = vocabulary - int(vocabulary * dropped) if top_k is None else top_k
    words = f"controller.{aim}={value:g}"
    if controller.anneal_to is not None and controller.anneal_to > 1:
        value *= controller.anneal_to
        words += f" x controller.anneal_to={controller.anneal_to:g}"
    if value >= math.log(tokens):
        yield (
            f"{words} must be below {math.log(tokens):.3g} nats: the entropy over the {tokens} "
            f"tokens {which} is never more"
        )


def _below(control: Any, _: Recipe) -> str:
    if control.low < control.high:
        return ""
    return f": low={control.low:g} is not below high={control.high:g}"


def _own_bounds(control: Any, _: Recipe) -> str:
    if not control.exact or control.model_fields_set >= {"low", "high"}:
        return ""
    return " with exact=true needs low and high: its defaults are bounds of the other covariance"


def _moved_policy(_: Any, recipe: Recipe) -> str:
    if recipe.trainer.mini_batches > 1:
        return ""
    return " changes nothing with trainer.mini_batches=1: the policy that learns is the old one"


def _reference(_: Any, recipe: Recipe) -> str:
    if recipe.algorithm.kl_coefficient > 0:
        return ""
    return " needs a reference: algorithm.kl_coefficient must be above 0"


def _group(_: Any, recipe: Recipe) -> str:
    if recipe.rollout.samples_per_prompt > 1:
        return ""
    return " compares responses: rollout.samples_per_prompt must be 2 or more"


def _within_reach(control: Any, recipe: Recipe) -> str:
    """None of n rewards is further than (n - 1) / sqrt(n) standard deviations from their mean."""
    budget = recipe.control("rollout_budget")
    n = recipe.rollout.samples_per_prompt if budget is None else budget.high
    most = (n - 1) / math.sqrt(n)
    if recipe.algorithm.advantage != "group_normalized" or control.bound < most:
        return ""
    return (
        f" changes nothing: bound={control.bound:g}, and no advantage among {n} responses is "
        f"above {most:.3g}"
    )


def _bonus(_: Any, recipe: Recipe) -> str:
    controller = recipe.controller
    if controller.drives not in ("bonus", "gradient_share"):
        return f" shapes the entropy bonus, and controller.drives={controller.drives}"
    if controller.kind != "constant" or controller.initial > 0:
        return ""
    return (
        " shapes the entropy bonus, which is off: controller.initial must be above 0 with "
        "controller.kind=constant"
    )


def _full_measure(_: Any, recipe: Recipe) -> str:
    if recipe.entropy.measure == "full":
        return ""
    return (
        " compares the bonus with entropies over the whole vocabulary: entropy.measure must be full"
    )


def _budget(control: Any, recipe: Recipe) -> str:
    n = recipe.rollout.samples_per_prompt
    if control.low <= n <= control.high:
        return ""
    return (
        f": rollout.samples_per_prompt={n} is not between low={control.low} and high={control.high}"
    )


def _several(control: Any, recipe: Recipe) -> str:
    if control.low > 1 or recipe.algorithm.advantage == "reinforce_plus_plus":
        return ""
    return f": low=1 gives algorithm.advantage={recipe.algorithm.advantage} nothing to compare"


def _uncorrected(_: Any, recipe: Recipe) -> str:
    if recipe.algorithm.importance == "none":
        return ""
    return (
        " trains on responses of another temperature, whose effect algorithm.importance="
        f"{recipe.algorithm.importance} would remove"
    )


def _temperatures(control: Any, recipe: Recipe) -> str:
    temperature = recipe.rollout.temperature
    if control.low < temperature < control.high:
        return ""
    return (
        f": rollout.temperature={temperature:g} is not between low={control.low:g} and "
        f"high={control.high:g}"
    )


def _own_temperature(_: Any, recipe: Recipe) -> str:
    if recipe.control("temperature_schedule") is None:
        return ""
    return " and temperature_schedule would both set temperatures: use only one"


def _trees(control: Any, recipe: Recipe) -> str:
    size = 1 + control.forks * control.branches
    if recipe.rollout.samples_per_prompt % size == 0:
        return ""
    return (
        f" makes trees of {size} responses, which do not divide "
        f"rollout.samples_per_prompt={recipe.rollout.samples_per_prompt}"
    )


def _whole_trees(_: Any, recipe: Recipe) -> str:
    if recipe.control("rollout_budget") is None:
        return ""
    return " needs whole trees, which rollout_budget would cut: use only one"


def _rewards_of_a_group(control: Any, recipe: Recipe) -> str:
    if not recipe.algorithm.advantage.startswith("reinforce"):
        before = recipe.entropy_controls[: recipe.entropy_controls.index(control)]
        moved = [other.kind for other in before if other.ACTS_ON == "advantage"]
        return f" must be listed before {moved[0]}: it replaces the baseline" if moved else ""
    return (
        " replaces a group's mean, but algorithm.advantage="
        f"{recipe.algorithm.advantage} normalizes over the batch"
    )


def _clip(_: Any, recipe: Recipe) -> str:
    if recipe.algorithm.policy_loss != "cispo":
        return ""
    return " keeps gradients that a clip removes, but algorithm.policy_loss=cispo removes none"


RULES: dict[str, tuple[Callable[[Any, Recipe], str], ...]] = {
    "clip_cov": (_below, _own_bounds),
    "kl_cov": (_moved_policy,),
    "entropy_ratio_clip": (_moved_policy,),
    "advantage_kl": (_reference,),
    "response_entropy_advantage": (_group,),
    "advantage_clip": (_within_reach,),
    "entropy_smoothing": (_bonus, _full_measure, _below),
    "difficulty_coefficient": (_bonus,),
    "rollout_budget": (_budget, _several),
    "reroll": (_group, _uncorrected, _temperatures, _own_temperature),
    "majority_reward": (_group,),
    "forked_rollouts": (_trees, _whole_trees),
    "sample_switch": (_below,),
    "quantile_baseline": (_group, _rewards_of_a_group),
    "kept_gradient": (_moved_policy, _clip),
}
