"""What forwards alone say of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from aent.data.flat import Flat, PerToken


@dataclass(frozen=True)
class Scores(Flat):
    """What the policy before the step's first update says of every response token, tempered; the
    same on every rank. 0 off the loss mask."""

    logprobs: PerToken  # [T] fp32
    entropies: PerToken  # [T] fp32, nats, over the whole vocabulary
    nucleus_entropies: PerToken | None = None  # [T] fp32, nats, where nucleus_anchor asks
    # [T] fp32, of ``entropy.TokenStatistics``, where an entropy control asks for exact covariances
    covariances: PerToken | None = None
    entropy_slopes: PerToken | None = None
