"""What a grader sees of a response. Imports nothing heavy: the judges' processes read it too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """One response to a question."""

    text: str
    tokens: int = 0  # how many the policy wrote
    finished: bool = True  # the policy ended it; False: rollout.max_response_tokens did
