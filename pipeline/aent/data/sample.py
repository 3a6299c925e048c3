"""One response. Imports no torch: the launcher reads samples too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Sample:
    """One response, as written by an engine and scored by the graders."""

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]  # of the rollout policy (tempered), one per response token
    versions: list[int]  # weight version that wrote each response token
    finish_reason: str  # "stop" (end of sequence) or "length" (truncated)
    group: int  # the same for all responses to one prompt of a step
    item: int  # index of the question in its task
    reward: float = 0.0
    replaced: int = 0  # groups without signal that were discarded before this one
    rerolled: bool = False  # sampled at another temperature than the policy's (AEPO)
    source: str = ""  # of the question, in a mixture
