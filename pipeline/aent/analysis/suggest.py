"""``aent suggest``: a controller from a run with a constant coefficient.

This is a heuristic; it uses only the run itself. It proposes ``log_pi`` with

- the neutral coefficient (``trainer.gradient_share``): <dL, dH> over ||dH||^2, both summed over the
  run's steps. At this value the policy loss and the bonus balance, so the coefficient starts there;
  its limits are a factor ``DECADE`` below and above. If the source does not have these metrics: a
  tenth of ``--max``, else the run's own coefficient.
- a target. B is the entropy of the first step, E the median of the last fifth of the steps. If the
  entropy moved (by a fifth of B, and by three times the noise of a step), the target lies ``SHARE``
  of the way from B to E on a logarithmic scale: the run may learn on its way, and is held before it
  reaches E. Otherwise the target is the entropy's median.
- a ramp: the number of steps that the entropy took to reach the target by itself, at least
  ``LEAST_STEPS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from aent.entropy.controllers import ControllerSettings
from aent.tracking.recorded import Recorded, SourceError

LEAST_STEPS = 10  # of a ramp; also the fewest steps that a suggestion can use
SHARE = 0.375  # part of the way from B to E
DECADE = 10.0


@dataclass(frozen=True)
class Suggestion:
    """A controller, and the reasons for it: three lines."""

    controller: ControllerSettings
    why: tuple[str, str, str]

    def __str__(self) -> str:
        c = self.controller
        fields = ["kind", "initial", "target", "ramp_steps", "min", "max"]
        fields += ["measure"] if c.measure is not None else []
        text = ", ".join(f"{name}: {_plain(getattr(c, name))}" for name in fields)
        return "\n".join([f"controller: {{{text}}}", *(f"# {line}" for line in self.why)])


def suggest(recorded: Recorded, most: float | None = None) -> Suggestion:
    """Propose a ``log_pi`` controller for the setting of a recorded run.

    most: the coefficient's upper limit, instead of ten times the neutral coefficient.

    Raises SourceError if the run is too short, its coefficient moved, or no scale is known.
    """
    if most is not None and not 0 < most < math.inf:
        raise SourceError(f"--max is {most:g}, but must be above 0")
    if (drives := recorded.controller.drives) != "bonus":
        raise SourceError(
            f"the run drove {drives}; a neutral coefficient is only known for the bonus"
        )
    coefficient = _constant_coefficient(recorded)
    steps = sorted(t for t, h in recorded.entropy.items() if math.isfinite(h) and h >= 0)
    if len(steps) < LEAST_STEPS:
        raise SourceError(f"the source has {len(steps)} measured steps; {LEAST_STEPS} are needed")
    entropy = [recorded.entropy[t] for t in steps]
    begin, end = entropy[0], median(entropy[-max(3, len(entropy) // 5) :])
    moves = [b - a for a, b in pairwise(entropy)]
    noise = 1.4826 * median(abs(m - median(moves)) for m in moves) / math.sqrt(2)
    left = abs(end - begin) > max(0.2 * begin, 3 * noise)
    target = _on_the_way(begin, end) if left else median(entropy)
    if target <= 0:
        raise SourceError("the entropy is 0 nats throughout: there is no target")
    took = _steps_to(entropy, target) if left else 0
    neutral, scale = _neutral(recorded, coefficient, most)

    went = f"{'fell' if end < begin else 'rose'} to {end:.3g}" if left else "stayed there"
    lies = f"{SHARE:g} of that way (on a log scale)" if left else "its median"
    why = (
        f"with the constant coefficient {coefficient:g} the entropy began at {begin:.3g} nats and "
        f"{went}; noise alone moves it by {noise:.2g}. The target is {lies}",
        f"initial is {scale}; min and max are a factor {DECADE:g} below and above",
        f"ramp_steps: by itself the entropy took {took} steps to the target"
        if left
        else "ramp_steps: the least, since the entropy is at its target",
    )
    settings = ControllerSettings(
        kind="log_pi",
        initial=_round(neutral),
        target=_round(target),
        ramp_steps=float(max(LEAST_STEPS, took)),
        min=_round(neutral / DECADE),
        max=_round(neutral * DECADE),
        measure=recorded.controller.measure,  # the entropy for which the target was computed
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


def _on_the_way(begin: float, end: float) -> float:
    end = max(end, 0.01 * begin)  # a logarithmic scale has no 0
    begin = max(begin, 0.01 * end)
    return begin ** (1 - SHARE) * end**SHARE


def _steps_to(entropy: Sequence[float], target: float) -> int:
    """Number of steps that the entropy took from its first value to the target."""
    falling = entropy[0] > target
    return next(
        (t for t, h in enumerate(entropy) if (h <= target if falling else h >= target)),
        len(entropy),
    )


def _neutral(recorded: Recorded, coefficient: float, most: float | None) -> tuple[float, str]:
    """(the coefficient at which the entropy would stay, where it comes from)."""
    if most is not None:
        return most / DECADE, f"a tenth of --max={most:g}"
    product, norm = (recorded.metrics.get(f"gradient/{n}", {}) for n in ("product", "entropy"))
    both = [t for t in product if math.isfinite(product[t] + norm.get(t, math.nan))]
    square = sum(norm[t] ** 2 for t in both)
    if square > 0:
        neutral = sum(product[t] for t in both) / square
        if neutral > 0:
            return neutral, (
                f"the neutral coefficient over {len(both)} steps, at which the bonus would cancel "
                "the effect of learning on the entropy"
            )
        raise SourceError(
            "learning did not lower the entropy in this run (the sum of gradient/product is "
            f"{sum(product[t] for t in both):.3g}): no coefficient is neutral; give --max"
        )
    if coefficient > 0:
        return coefficient, "the run's own (gradient/product was not recorded)"
    raise SourceError(
        "the source gives no scale for a coefficient: its own is 0, and gradient/product and "
        "gradient/entropy were not recorded; give --max"
    )


def _round(value: float) -> float:
    return float(f"{value:.2g}")


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
