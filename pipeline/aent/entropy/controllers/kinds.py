"""The kinds of controllers: one entry each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aent.entropy.controllers import aims, laws, observer


@dataclass(frozen=True)
class Kind:
    """A kind of controller: its aim, its law, and the settings that it takes.

    needs: required settings. words: what it does (a format string over the settings and over
    ``aim``, the target or band). defaults: settings that have one. either: groups of settings of
    which exactly one is needed. waits: whether ``warmup_steps`` may delay it. logarithmic: whether
    its law takes the coefficient's logarithm. memory: what only its law keeps.
    """

    aim: aims.Aim
    law: laws.Law
    needs: tuple[str, ...]
    words: str
    defaults: Mapping[str, float] = field(default_factory=dict)
    either: tuple[tuple[str, ...], ...] = ()
    waits: bool = True
    logarithmic: bool = False
    memory: tuple[str, ...] = ()

    @property
    def fields(self) -> set[str]:
        """Every setting that has a meaning for it."""
        waits = {"warmup_steps"} if self.waits else set()
        aimed = set() if self.aim is aims.none else {"anneal_to", "anneal_steps"}
        choices = {name for group in self.either for name in group}
        always = {"kind", "initial", "measure", "drives"}
        return always | {*self.needs, *self.defaults} | choices | waits | aimed


KINDS: dict[str, Kind] = {
    "constant": Kind(aims.none, laws.stay, (), "constant", waits=False),
    "band": Kind(
        aims.band,
        laws.step_by_error,
        ("low", "high", "step_size", "min", "max"),
        "+{step_size:g} per nat below {low:g}, -{step_size:g} per nat above {high:g}",
    ),
    "automatic_band": Kind(
        aims.automatic_band,
        laws.step_by_error,
        ("low_fraction", "high_fraction", "reference_steps", "step_size", "min", "max"),
        "+{step_size:g} per nat below {low_fraction:g} times, -{step_size:g} per nat above "
        "{high_fraction:g} times the mean entropy of the first {reference_steps} steps",
    ),
    "proportional_integral": Kind(
        aims.target,
        laws.proportional_integral,
        ("target", "proportional_gain", "integral_gain", "min", "max"),
        "{proportional_gain:g} x (nats below {target:g}) + the sum over steps of "
        "{integral_gain:g} x (nats below {target:g})",
        memory=("integral",),
    ),
    "dual": Kind(
        aims.target,
        laws.log_step,
        ("target", "step_size", "min", "max"),
        "multiplied by exp({step_size:g} x (nats below {target:g}))",
        logarithmic=True,
    ),
    "target": Kind(
        aims.target,
        laws.fixed_step_below_target,
        ("target", "step_size", "min", "max"),
        "+{step_size:g} below {target:g} nats, -{step_size:g} above, while 0 is applied",
        memory=("stepped",),
    ),
    "log_pi": Kind(
        aims.approach,
        laws.log_proportional_integral,
        (),
        "multiplied by exp(-{integral_gain:g} e - {proportional_gain:g} x the change of e), where "
        "e is how far ln(entropy), averaged with weight {smoothing:g} on its past, lies outside "
        "ln({aim} nats), which is approached from the first entropy in {ramp_steps:g} steps",
        defaults={
            "ramp_steps": 20.0,
            "proportional_gain": 1.5,
            "integral_gain": 0.05,
            "smoothing": 0.3,
            "min": 1e-3,
            "max": 1.0,
        },
        either=(("target",), ("low", "high")),
        waits=False,
        logarithmic=True,
        memory=("log_entropy", "log_error"),
    ),
    "observer": Kind(
        aims.approach,
        observer.observe,
        (),
        "to the value that a model (ln(entropy) moves by {response:g} in a step at twice the "
        "neutral coefficient, with a lag of {lag_steps:g} steps) needs for ln({aim} nats), which "
        "is approached from the first entropy in {ramp_steps:g} steps; gains {proportional_gain:g} "
        "and {integral_gain:g}, weight {smoothing:g} on the model's prediction",
        defaults={
            "ramp_steps": 20.0,
            "proportional_gain": 5.0,
            "integral_gain": 0.1,
            "smoothing": 0.55,
            "response": 0.08,
            "lag_steps": 3.0,
            "min": 1e-3,
            "max": 1.0,
        },
        either=(("target",), ("low", "high")),
        waits=False,
        logarithmic=True,
        memory=("predicted", "log_neutral", "acting"),
    ),
}
