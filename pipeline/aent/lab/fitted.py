"""A closed loop fitted to a recorded run: how its entropy responds to its coefficient, with which
delay and noise.

With y = ln H as the policy has it, x = ln H as it was measured and f the coefficient through a
filter of the first order with time constant L (the lag: an optimizer's momentum, mostly),

    y_t+1 = y_t + a + G f_t - k (y_t - x_0) + process noise,     x_t = y_t + measurement noise.

The response is linear in the coefficient, like the first-order change of the entropy
(``trainer.gradient_share``), and in the logarithm of the entropy, which changes by factors. -a / G
is the coefficient at which the entropy stays where it began.

For every combination of lag, leak k and noise ratio on a grid, G and a follow from the innovations
of a Kalman filter by least squares; the likeliest combination is used. This is textbook state-space
estimation (Harvey, Forecasting, Structural Time Series Models and the Kalman Filter, 1989, section
3.4: the likelihood by prediction errors, concentrated). That a policy's entropy follows this model
is our assumption, and holds only near the values that the run has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.lab.plant import Step
from aent.tracking.recorded import Recorded, Series, SourceError

LEAST_STEPS = 30
LAGS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)  # steps
LEAKS = (0.0, 0.01, 0.03, 0.1, 0.3)  # per step
NOISES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # variance of a measurement over that of a step
LEAST = 1e-6  # nats: the least entropy whose logarithm is taken
# how far a simulation may leave the range of logarithms that the run has seen
BEYOND = math.log(10)


@dataclass(frozen=True)
class Fitted:
    """A run's response: of ln H, per step."""

    first: float  # ln H of the first step, as measured
    low: float  # range of ln H that the run has seen
    high: float
    drift: float  # a
    gain: float  # G, per unit of the coefficient
    gain_error: float  # its standard error
    lag: float  # L, steps
    leak: float  # k
    process_noise: float  # standard deviations
    measurement_noise: float

    @property
    def neutral(self) -> float:
        """The coefficient at which the entropy stays where it began."""
        return -self.drift / self.gain

    def __str__(self) -> str:
        return (
            f"ln H moves {self.gain:.3g} +- {self.gain_error:.2g} a step per unit of the "
            f"coefficient, {self.lag:g} steps late, and {self.drift:.3g} by itself (neutral "
            f"coefficient {self.neutral:.3g}), leak {self.leak:g}; noise of a step "
            f"{self.process_noise:.2g}, of a measurement {self.measurement_noise:.2g}"
        )

    def simulate(
        self,
        settings: ControllerSettings,
        seed: int,
        steps: int,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> list[Step]:
        """Simulate a controller on it. Deterministic. The reward is unknown (NaN)."""
        noise = np.random.default_rng(seed).normal(size=(steps, 2))
        state, seen = controllers.initial_state(settings), []
        value, filtered, kept = self.first, state.coefficient, _kept(self.lag)
        for step in progress(range(steps)):
            coefficient = state.coefficient
            entropy = math.exp(value + self.measurement_noise * noise[step, 0])
            error = self.measurement_noise * entropy
            seen.append(Step(entropy, error, coefficient, math.nan, math.nan, math.nan))
            state, _ = controllers.update(settings, state, entropy)
            filtered = kept * filtered + (1 - kept) * coefficient
            value += self.drift + self.gain * filtered - self.leak * (value - self.first)
            value += self.process_noise * noise[step, 1]
            value = min(max(value, self.low - BEYOND), self.high + BEYOND)
        return seen


def fit_recorded(recorded: Recorded) -> Fitted:
    """``fit`` of a recorded run. Raises SourceError if its coefficients were not recorded."""
    coefficient = recorded.metrics.get("controller/coefficient")
    if not coefficient:
        raise SourceError("the source has no recorded coefficients (controller/coefficient)")
    return fit(recorded.entropy, coefficient)


def fit(entropy: Series, coefficient: Series) -> Fitted:
    """Fit to the entropies (nats) and coefficients of a run's steps. The filter skips a step whose
    entropy is missing or NaN.

    Raises SourceError if fewer than ``LEAST_STEPS`` steps have both, or if the response is not
    above zero by twice its standard error, as for a run whose coefficient hardly moved.
    """
    steps = sorted(step for step in entropy if step in coefficient)
    known = [math.isfinite(entropy[step]) for step in steps]
    if sum(known) < LEAST_STEPS:
        raise SourceError(f"the source has {sum(known)} measured steps; {LEAST_STEPS} are needed")
    first = known.index(True)
    every = range(steps[first], steps[-1] + 1)
    logs = [_log(entropy.get(step, math.nan)) for step in every]
    inputs = _carried([coefficient.get(step, math.nan) for step in every])
    found = _likeliest(np.array(logs), inputs)
    if not found.gain > 2 * found.gain_error:
        raise SourceError(
            "the run does not show what its coefficient does to its entropy (ln H moves "
            f"{found.gain:.3g} +- {found.gain_error:.2g} a step per unit of it): use a run "
            "whose coefficient moved more"
        )
    return found


def _likeliest(logs: np.ndarray, inputs: np.ndarray) -> Fitted:
    lag, leak, ratio = (np.array(column) for column in zip(*product(LAGS, LEAKS, NOISES)))
    errors, variance = _innovations(logs, inputs, lag, leak, ratio)
    # e_x = a e_1 + G e_f + white noise of this variance: two unknowns, by weighted least squares
    weighed = errors / np.sqrt(variance)[..., None]  # [steps, K, 3]
    moments = np.einsum("tki,tkj->kij", weighed, weighed)
    normal, right = moments[:, 1:, 1:], moments[:, 1:, :1]
    scale = np.trace(normal, axis1=1, axis2=2)[:, None, None] * 1e-12 * np.eye(2)
    # inputs that never moved give a huge error, not an exception
    inverse = np.linalg.inv(normal + scale)
    answer = (inverse @ right)[..., 0]  # [K, 2]
    count = len(errors)
    square = (moments[:, 0, 0] - (answer * right[..., 0]).sum(1)) / (count - 2)
    likelihood = -count * np.log(square) - np.log(variance).sum(0)
    best = int(likelihood.argmax())
    drift, gain = answer[best]
    process = math.sqrt(square[best])
    return Fitted(
        first=float(logs[0]),
        low=float(np.nanmin(logs)),
        high=float(np.nanmax(logs)),
        drift=float(drift),
        gain=float(gain),
        gain_error=process * math.sqrt(inverse[best, 1, 1]),
        lag=float(lag[best]),
        leak=float(leak[best]),
        process_noise=process,
        measurement_noise=process * math.sqrt(ratio[best]),
    )


def _innovations(
    logs: np.ndarray, inputs: np.ndarray, lag: np.ndarray, leak: np.ndarray, ratio: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """([n, K, 3], [n, K]) for K combinations: the filter's innovations for the measurements, for a
    constant 1 and for the filtered input, each by itself; and their variance, in units of the
    process noise's."""
    kept = np.array([_kept(value) for value in lag])
    mean = np.zeros((len(lag), 3))  # of ln H less its first; of 1, of f
    spread, filtered = ratio.copy(), np.full(len(lag), inputs[0])
    errors, variances = [], []
    for before, now in zip(inputs, logs[1:]):
        filtered = kept * filtered + (1 - kept) * before
        mean = (1 - leak)[:, None] * mean
        mean[:, 1] += 1
        mean[:, 2] += filtered
        spread = (1 - leak) ** 2 * spread + 1
        if math.isnan(now):
            continue
        error = np.array([now - logs[0], 0, 0]) - mean
        error[:, 1:] *= -1  # e_x - a e_1 - G e_f is the innovation that remains
        variance = spread + ratio
        errors.append(error)
        variances.append(variance)
        gain = spread / variance
        mean = mean + gain[:, None] * (error * [1, -1, -1])
        spread = (1 - gain) * spread
    return np.array(errors), np.array(variances)


def _log(entropy: float) -> float:
    return math.log(max(entropy, LEAST)) if math.isfinite(entropy) else math.nan


def _kept(lag: float) -> float:
    """Weight of the past in a filter with this time constant (steps)."""
    return math.exp(-1 / lag) if lag else 0.0


def _carried(values: list[float]) -> np.ndarray:
    """The values, with each gap filled by the last value before it."""
    for place, value in enumerate(values):
        if math.isnan(value) and place:
            values[place] = values[place - 1]
    return np.array(values)
