"""Penalties added to rewards before advantages are computed."""

from __future__ import annotations

from torch import Tensor


def overlong_penalty(tokens: Tensor, max_tokens: int, buffer: int, factor: float) -> Tensor:
    """Soft overlong punishment (DAPO, arXiv 2503.14476 eq. 13): 0 up to ``max_tokens - buffer``
    response tokens, then falling linearly to ``-factor`` at ``max_tokens``, the longest response
    (the paper's factor is 1; verl calls it penalty_factor).

    Args:
        tokens: [S] int64, response tokens of each sequence. buffer: above 0.

    Returns:
        [S] fp32, at most 0.
    """
    excess = tokens - (max_tokens - buffer)
    return -factor * excess.clamp(min=0).float() / buffer
