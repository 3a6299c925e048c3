"""The fields of a controller's settings, without a check of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SettingValues:
    """A recipe's settings of the coefficient; entropies in nats. ``KINDS`` says which kind needs
    which.

    kind: a name in KINDS. initial: coefficient of step 0. low, high: the band the entropy should
    stay in. low_fraction, high_fraction: the same as fractions of the mean entropy of the first
    ``reference_steps`` measured steps. target: the entropy wanted. step_size: what the coefficient
    (``dual``: its logarithm) moves per step and nat of error; with ``target``, per step.
    proportional_gain, integral_gain: coefficient per nat of error, and per nat of error and step
    (``log_pi``: of logarithms both, so without units). min, max: the box the coefficient stays in.
    warmup_steps: steps before the first update that may move it. ramp_steps: time constant with
    which the aim goes from the first entropy to where it is wanted. smoothing: weight of the past
    in the moving average of ln H, in [0, 1). response: by how much ln H moves in a step at twice
    the neutral coefficient. lag_steps: time constant with which a coefficient acts. measure: which
    entropy ``update`` is given, 'full' or 'clamped'; None: that of the loss. drives: the term that
    the coefficient scales (nothing here depends on it). anneal_to, anneal_steps: the aim is
    multiplied by a factor that goes linearly from 1 to ``anneal_to`` in that many steps; None: it
    does not change.
    """

    kind: str
    initial: float
    low: float | None = None
    high: float | None = None
    low_fraction: float | None = None
    high_fraction: float | None = None
    reference_steps: int | None = None
    target: float | None = None
    step_size: float | None = None
    proportional_gain: float | None = None
    integral_gain: float | None = None
    min: float | None = None
    max: float | None = None
    warmup_steps: int = 0
    ramp_steps: float | None = None
    smoothing: float | None = None
    response: float | None = None
    lag_steps: float | None = None
    measure: str | None = None
    drives: str = "bonus"
    anneal_to: float | None = None
    anneal_steps: int | None = None
