"""What a grader sees of a response. Imports little: the graders' processes read it too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """One response to a question."""

    text: str
    tokens: int = 0  # number that the policy wrote
    finished: bool = True  # False: cut off by rollout.max_response_tokens
