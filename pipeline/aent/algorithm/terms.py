"""The typed terms of a step's loss. Advantages, corrections and entropy controls return them;
``losses`` and the trainer add them up.

The loss of a mini-batch is the sum over its response tokens of

    policy_weight (f S + P) - lambda entropy_weight B + nucleus_weight N + proxy_weight K

S: the surrogate that the recipe names (``losses.policy_loss``), with ``zeta``, ``clip_high`` and
``clipped_gradient`` if they are given. f: ``surrogate_factor``, 0 for tokens outside
``entropy_gate``. P: ``ratio_weight``, ``old_kl_weight`` and ``reference``, each times its factor.
B: the entropy minus ``smoothing``. N: the entropy of the token's nucleus. K: the KL from the policy
without its unlikeliest tokens (Lp-Reg's proxy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from aent.data.batch import Batch
from aent.data.flat import Flat, PerToken


@dataclass(frozen=True)
class EntropyGate(Flat):
    """ERC: a token has a surrogate while its entropy lies between these bounds."""

    low: PerToken  # [T] fp32, nats
    high: PerToken


@dataclass(frozen=True)
class Smoothing(Flat):
    """EPO: ``weight`` per nat below or above these bounds is subtracted from the entropy bonus."""

    weight: PerToken  # [T] fp32
    low: PerToken  # [T] fp32, nats
    high: PerToken


@dataclass(frozen=True)
class ClippedGradient(Flat):
    """CE-GPPO: the share of the gradient at the bound that a clipped token keeps."""

    low: PerToken  # [T] fp32, where A < 0
    high: PerToken  # where A > 0


@dataclass(frozen=True)
class ReferenceKl(Flat):
    """``weight`` times the KL to the frozen reference is added to a token's policy loss."""

    logprobs: PerToken  # [T] fp32, the reference's
    weight: PerToken  # [T] fp32


@dataclass(frozen=True)
class LossTerms(Flat):
    """The terms of the loss for a step's samples; None: the loss does not have this term.

    The weights contain the denominators of a token's whole mini-batch (all its micro-batches and
    ranks), so a loss is a plain weighted sum wherever it is computed.
    """

    advantages: PerToken  # [T] fp32, 0 off the mask
    policy_weight: PerToken  # [T] fp32: in the mean of the policy loss
    entropy_weight: PerToken  # [T] fp32: in the mean of the entropy bonus
    # [T] fp32: the denominators of ratios, the trainer's log-probs before the step's first update;
    # None: those of the forward that is trained on (one mini-batch per step), so every ratio is 1
    old_logprobs: PerToken | None = None
    # [T] fp32: factor on the surrogate, for the train-inference mismatch
    correction: PerToken | None = None
    token_weight: PerToken | None = None  # [T] fp32: factor on the surrogate, by entropy controls
    zeta: PerToken | None = None  # [T] fp32: REPO-R's factor on advantages, by log-probs
    clip_high: PerToken | None = None  # [T] fp32: replaces algorithm.clip_high
    clipped_gradient: ClippedGradient | None = None  # with ppo_clip and gspo
    entropy_gate: EntropyGate | None = None
    ratio_weight: PerToken | None = None  # [T] fp32: of minus the ratio
    old_kl_weight: PerToken | None = None  # [T] fp32: of abs(log-prob - old log-prob)
    reference: ReferenceKl | None = None
    smoothing: Smoothing | None = None
    nucleus_weight: PerToken | None = None  # [T] fp32; 0 for tokens that need no nucleus
    proxy_weight: PerToken | None = None  # [T] fp32; 0 for tokens that need no proxy

    @property
    def surrogate_factor(self) -> Tensor | None:
        """[T] fp32: the factor on the surrogate; None: 1."""
        if self.correction is None or self.token_weight is None:
            return self.token_weight if self.correction is None else self.correction
        return self.token_weight * self.correction

    def weighed(self, factor: Tensor) -> LossTerms:
        """The same terms, with the surrogate also multiplied by ``factor`` [T]."""
        weight = factor if self.token_weight is None else factor * self.token_weight
        return replace(self, token_weight=weight)


@dataclass(frozen=True)
class MiniBatch:
    """The data of one optimizer step: samples, and the terms of their loss."""

    batch: Batch
    terms: LossTerms

    def select(self, sequences: Sequence[int]) -> MiniBatch:
        """The part for these sequences, in this order."""
        return MiniBatch(self.batch.select(sequences), self.terms.at(self.batch.places(sequences)))
