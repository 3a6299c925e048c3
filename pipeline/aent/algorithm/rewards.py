"""What is added to a judge's reward before advantages."""

from __future__ import annotations

from torch import Tensor


def overlong_penalty(tokens: Tensor, max_tokens: int, buffer: int, factor: float) -> Tensor:
    """Soft overlong punishment (DAPO, arXiv 2503.14476 eq. 13): 0 up to ``max_tokens - buffer``
    response tokens, from there falling linearly to ``-factor`` at ``max_tokens``, where every
    response is cut off (the paper's factor is 1; verl names it penalty_factor).

    Args:
        tokens: [S] int64, response tokens of each sequence. buffer: above 0.

    Returns:
        [S] fp32, at most 0.
    """
    excess = tokens - (max_tokens - buffer)
    return -factor * excess.clamp(min=0).float() / buffer
