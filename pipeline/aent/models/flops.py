"""Model FLOPs: what the forward of a policy multiplies and adds, by its family's record.

Counted are matrix products alone, two operations for each multiplication with its addition: the
projections of every layer (of the weights that the record names: fused or not, gated, grouped
queries), the products of queries with keys and of shares with values, and the output layer on the
response tokens, which are the only ones that it sees. Norms, rotations, softmax and activations are
not counted, nor is anything that is computed twice. A backward has twice the forward's
(arXiv 2204.02311, appendix B, whose formula takes every pair of tokens; here those that attend to
one another).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aent.models.decoder import ModelFacts

TRAINING = 3  # forward and backward, in forwards


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of a forward's matrix products."""

    layers: Mapping[int | None, int]  # how many have a sliding window of this size; None: no window
    token: int  # of the projections of all layers, for each token
    pair: int  # of attention, for each pair of tokens in one layer
    predicted: int  # of the output layer, for each token that is predicted

    @staticmethod
    def of(facts: ModelFacts) -> ForwardFlops:
        matrices = [shape for shape in facts.layer_weights.values() if len(shape) == 2]
        return ForwardFlops(
            layers=Counter(layer.window for layer in facts.attention),
            token=2 * facts.layers * sum(map(math.prod, matrices)),
            pair=4 * facts.heads * facts.head_dim,
            predicted=2 * facts.embedding_parameters,
        )

    def of_unit(self, prompt: int, responses: Sequence[int]) -> int:
        """FLOPs of one prompt, computed once, and its responses.

        Args:
            prompt: its tokens. responses: tokens of each, all of which are predicted.
        """
        pairs = sum(
            count * attending_pairs(prompt, responses, window)
            for window, count in self.layers.items()
        )
        written = sum(responses)
        return self.token * (prompt + written) + self.pair * pairs + self.predicted * written


def attending_pairs(prompt: int, responses: Sequence[int], window: int | None = None) -> int:
    """Number of pairs (token, itself or an earlier token) in one layer: a response sees the prompt
    and itself, but no other response. With a window, a token sees only the last ``window`` tokens,
    itself included."""

    def until(length: int) -> int:
        full = length if window is None else min(length, window)
        return full * (full + 1) // 2 + (length - full) * full

    return until(prompt) + sum(until(prompt + n) - until(prompt) for n in responses)
