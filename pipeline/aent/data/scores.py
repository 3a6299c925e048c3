"""Values per token that need a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from aent.data.flat import Flat, PerToken


@dataclass(frozen=True)
class Scores(Flat):
    """Values of every response token under the policy before the step's first update, tempered;
    the same on every rank. 0 off the loss mask."""

    logprobs: PerToken  # [T] fp32
    entropies: PerToken  # [T] fp32, nats, over the whole vocabulary
    nucleus_entropies: PerToken | None = None  # [T] fp32, nats, if nucleus_anchor is on
    # [T] fp32, of ``entropy.TokenStatistics``, if an entropy control needs exact covariances
    covariances: PerToken | None = None
    entropy_slopes: PerToken | None = None
