"""How far the clamped entropy is from the full one, on the tokens that a real policy writes.

For a token's logits, a temperature and a rule for what is kept, it computes both entropies and
their gradients with respect to every logit. For any rule, the kept set is a run of likeliest
tokens. So one sort of the logits, with running sums, serves every rule, temperature and size:

    m = sum p     L = sum p log p     sum p^2, sum p^2 log p, sum p^2 (log p)^2     over the first K
    H = -L(V)     Hc = log m - L/m

The gradients are -p (log p + H), and -q (log q + Hc) with q = p/m on the kept set
(docs/clamped-entropy.md), so that norms and differences are those sums again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLD = 0.01  # relative difference from which a clamp matters


@dataclass(frozen=True)
class Rule:
    """Which tokens are kept. kind: drop_fraction or top_k, as ``token_statistics`` means them, or
    top_p, as ``nucleus_entropy``: the fewest likeliest tokens that reach that probability."""

    kind: str
    value: float

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"

    def count(self, running: Tensor) -> Tensor:
        """K of each token, int64 [N, 1], of its running sums of sorted probabilities [N, V]."""
        rows, vocabulary = running.shape
        if self.kind == "top_p":
            return ((running < self.value).sum(dim=-1, keepdim=True) + 1).clamp(max=vocabulary)
        kept = min(int(self.value), vocabulary)
        if self.kind == "drop_fraction":
            kept = vocabulary - int(vocabulary * self.value)
        return torch.full((rows, 1), kept, device=running.device)


RULES = (
    *(Rule("drop_fraction", value) for value in (0.1, 0.33, 0.5, 0.9, 0.99, 0.999)),
    *(Rule("top_k", value) for value in (1000, 100, 10)),
    *(Rule("top_p", value) for value in (0.99, 0.95, 0.8)),
)


@dataclass(frozen=True)
class Differences:
    """Of N tokens and S rules, float64.

    entropy: [N] nats, of the whole policy. kept: [N, S] tokens in the set. clamped: [N, S] nats.
    gradient: [N] norm of the full entropy's gradient with respect to the tempered logits.
    gradient_difference: [N, S] norm of its difference to the clamped entropy's gradient.
    """

    entropy: Tensor
    kept: Tensor
    clamped: Tensor
    gradient: Tensor
    gradient_difference: Tensor

    @staticmethod
    def join(parts: Sequence[Differences]) -> Differences:
        names = ("entropy", "kept", "clamped", "gradient", "gradient_difference")
        return Differences(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def differences(
    logits: Tensor, temperatures: Sequence[float], rules: Sequence[Rule] = RULES
) -> Differences:
    """Compare at every temperature; N is then len(temperatures) times the tokens of ``logits``
    ([tokens, V], finite)."""
    ordered = logits.double().sort(dim=-1, descending=True).values
    return Differences.join([_at_temperature(ordered / t, rules) for t in temperatures])


def _at_temperature(ordered: Tensor, rules: Sequence[Rule]) -> Differences:
    log_p = ordered.log_softmax(dim=-1)
    p = log_p.exp()
    mass, weighted = p.cumsum(dim=-1), (p * log_p).cumsum(dim=-1)
    square = p.square()
    squares = [(square * log_p**power).cumsum(dim=-1) for power in (0, 1, 2)]
    last = [each[:, -1:] for each in squares]
    entropy = -weighted[:, -1:]

    def norm_squared(sums: Sequence[Tensor], constant: Tensor, slope: Tensor | float) -> Tensor:
        """Sum of p^2 (slope log p + constant)^2."""
        return slope**2 * sums[2] + 2 * slope * constant * sums[1] + constant**2 * sums[0]

    kept, clamped, squared = [], [], []
    for rule in rules:
        count = rule.count(mass)
        m, s = (each.gather(-1, count - 1) for each in (mass, weighted))
        inside = [each.gather(-1, count - 1) for each in squares]
        outside = [whole - part for whole, part in zip(last, inside)]
        # on the set: p (log p + H) - q (log q + Hc), where log q + Hc = log p - s/m
        on = norm_squared(inside, entropy + s / m**2, 1 - 1 / m)
        kept.append(count)
        clamped.append(m.log() - s / m)
        squared.append(on + norm_squared(outside, entropy, 1.0))
    return Differences(
        entropy[:, 0],
        torch.cat(kept, dim=-1),
        torch.cat(clamped, dim=-1),
        norm_squared(last, entropy, 1.0)[:, 0].clamp(min=0).sqrt(),
        torch.cat(squared, dim=-1).clamp(min=0).sqrt(),
    )
