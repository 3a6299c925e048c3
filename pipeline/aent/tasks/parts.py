"""Common parts of rewards, as functions for ``{kind: python}`` graders:
``{function: aent.tasks.parts:finished_thought, weight: 0.1}``."""

from __future__ import annotations

import re

from aent.data.question import Question
from aent.data.response import Response


def matches(response: Response, question: Question, pattern: str) -> float:
    """1 if the whole response matches a regular expression (``.`` also matches line breaks), else
    0."""
    return float(re.fullmatch(pattern, response.text.strip(), re.DOTALL) is not None)


def finished_thought(
    response: Response, question: Question, begin: str = "<think>", end: str = "</think>"
) -> float:
    """1 if there is at least one thought block, every one is closed, and text follows the last;
    else 0. A chat template may have written the first ``begin`` itself."""
    text = response.text
    begun, ended = text.count(begin), text.count(end)
    closed = ended > 0 and ended - begun in (0, 1) and text.rfind(begin) < text.rfind(end)
    return float(closed and bool(text.rpartition(end)[2].strip()))


def length(response: Response, question: Question, free: int, limit: int) -> float:
    """0 up to ``free`` tokens, then falling linearly to -1 at ``limit`` and beyond (the shape of
    DAPO's overlong penalty, arXiv 2503.14476 eq. 13). Raises ValueError unless free < limit."""
    if free >= limit:
        raise ValueError(f"length: free={free} is not below limit={limit}")
    return -min(1.0, max(0.0, (response.tokens - free) / (limit - free)))
