"""``aent suggest``: a band and a step size from a run with a constant coefficient.

A heuristic, with nothing fitted to anything but the run itself. From where the entropy began (B)
and where it went (E), both medians over a fifth of the steps:

- it left (by a fifth of B, and by three times the noise of a step): the band lies on its way, from
  a quarter to a half of it on a logarithmic scale: the run may learn on its way, and is held before
  it arrives;
- it stayed: the band is drawn around it, two noises or a tenth wide on each side.

The box goes from 0 to the coefficient at which the bonus pulls on the logits as hard as the policy
loss does (both norms are recorded each step); for a source without them, to ``--max``, else to four
times the run's own coefficient. The step size takes the coefficient through the whole box in as
many steps as the entropy took through the band, at least ten, at an entropy half way between the
band and E. The updates begin when the entropy first reaches the band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from aent.entropy.controllers import ControllerSettings
from aent.tracking.recorded import Recorded, SourceError

LEAST_STEPS = 10  # to cross the box in, and to read anything from
WIDTH_IN_NOISES = 4.0  # of the band, at least


@dataclass(frozen=True)
class Suggestion:
    """A controller, and why: three lines."""

    controller: ControllerSettings
    why: tuple[str, str, str]

    def __str__(self) -> str:
        c = self.controller
        fields = ("kind", "initial", "low", "high", "step_size", "min", "max", "warmup_steps")
        text = ", ".join(f"{name}: {_plain(getattr(c, name))}" for name in fields)
        return "\n".join([f"controller: {{{text}}}", *(f"# {line}" for line in self.why)])


def suggest(recorded: Recorded, most: float | None = None) -> Suggestion:
    """Propose a ``band`` controller for the setting of a recorded run.

    most: the box's upper end, where the source does not say how hard the bonus pulls.

    Raises SourceError: too short a run, one whose coefficient moved, or no scale for the box.
    """
    coefficient = _constant_coefficient(recorded)
    steps = sorted(t for t, h in recorded.entropy.items() if math.isfinite(h) and h >= 0)
    if len(steps) < LEAST_STEPS:
        raise SourceError(f"the source has {len(steps)} measured steps; {LEAST_STEPS} are needed")
    entropy = [recorded.entropy[t] for t in steps]
    part = max(3, len(entropy) // 5)
    begin, end = median(entropy[:part]), median(entropy[-part:])
    moves = [b - a for a, b in pairwise(entropy)]
    noise = 1.4826 * median(abs(m - median(moves)) for m in moves) / math.sqrt(2)
    left = abs(end - begin) > max(0.2 * begin, 3 * noise)
    low, high = _band(begin, end, noise, left)
    first, took = _passage(entropy, low, high, falling=end < begin) if left else (0, len(entropy))
    in_steps = max(LEAST_STEPS, took)
    edge = low if end < begin else high
    distance = abs(edge - end) / 2 if left else (high - low) / 2
    most, scale = _scale(recorded, coefficient, most)
    step_size = most / (distance * in_steps)

    went = f"{'fell' if end < begin else 'rose'} to {end:.3g}" if left else "stayed there"
    lies = "a quarter to a half of that way (on a log scale)" if left else "around it"
    why = (
        f"with the constant coefficient {coefficient:g} the entropy began at {begin:.3g} nats and "
        f"{went}, moving {noise:.2g} by noise alone: the band lies {lies}",
        f"max is {scale}",
        f"step_size crosses the box in {in_steps} steps at {distance:.2g} nats outside the band"
        + (f" (half way to {end:.3g}); the entropy reached the band at step" if left else ";")
        + (f" {steps[first]}" if left else " it was there from the start"),
    )
    settings = ControllerSettings(
        kind="band",
        initial=min(coefficient, _round(most)),
        low=_round(low),
        high=_round(high),
        step_size=_round(step_size),
        min=0.0,
        max=_round(most),
        warmup_steps=steps[first] if left else 0,
    )
    return Suggestion(settings, why)


def _constant_coefficient(recorded: Recorded) -> float:
    logged = recorded.metrics.get("controller/coefficient", {}).values()
    least, most = min(logged, default=None), max(logged, default=None)
    if least != most:
        raise SourceError(
            f"the run's coefficient moved, from {least:g} to {most:g}: a suggestion needs a run "
            "with a constant one (controller.kind=constant)"
        )
    return recorded.controller.initial if least is None else least


def _band(begin: float, end: float, noise: float, left: bool) -> tuple[float, float]:
    if left:
        end = max(end, 0.01 * begin)  # from 0 no logarithm leads back
        begin = max(begin, 0.01 * end)
        low, high = sorted(begin ** (1 - share) * end**share for share in (0.25, 0.5))
    else:
        centre, half = (begin + end) / 2, max(2 * noise, 0.05 * (begin + end))
        low, high = max(0.0, centre - half), centre + half
    lacking = WIDTH_IN_NOISES * noise - (high - low)
    if lacking > 0:
        low, high = max(0.0, low - lacking / 2), high + lacking / 2
    return low, high


def _passage(entropy: Sequence[float], low: float, high: float, falling: bool) -> tuple[int, int]:
    """(index at which the entropy first reached the band, steps from there to its far edge)."""
    inside = [h <= high if falling else h >= low for h in entropy]
    beyond = [h <= low if falling else h >= high for h in entropy]
    first = inside.index(True) if True in inside else 0
    return first, (beyond.index(True) if True in beyond else len(entropy)) - first


def _scale(recorded: Recorded, coefficient: float, most: float | None) -> tuple[float, str]:
    """(the box's upper end, why)."""
    if most is not None:
        return most, "as given by --max"
    policy, bonus = (recorded.metrics.get(f"gradient/{n}", {}) for n in ("policy", "entropy"))
    ratios = [policy[t] / bonus[t] for t in policy if bonus.get(t, 0) > 0 and policy[t] > 0]
    if ratios:
        return median(ratios), (
            "where the bonus pulls as hard on the logits as the policy loss does (median over "
            f"{len(ratios)} steps)"
        )
    if coefficient > 0:
        return 4 * coefficient, (
            "four times the run's own coefficient (how hard the bonus pulls was not recorded)"
        )
    raise SourceError(
        "the source does not say how large a coefficient is: its own is 0, and how hard the bonus "
        "pulls (gradient/policy, gradient/entropy) was not recorded; give --max"
    )


def _round(value: float) -> float:
    return float(f"{value:.2g}")


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
