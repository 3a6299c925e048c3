"""One response. Imports no torch: the launcher reads samples too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Sample:
    """One response, as an engine wrote it and a judge rewarded it."""

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]  # behaviour policy's (tempered), one per response token
    versions: list[int]  # weight version that wrote each response token
    finish_reason: str  # "stop" (end of sequence) or "length" (truncated)
    group: int  # responses to one prompt of one step share it
    item: int  # index of the question in its task
    reward: float = 0.0
    replaced: int = 0  # groups without signal that were thrown away for this one's place
    rerolled: bool = False  # sampled at another temperature than the policy's (AEPO)
    source: str = ""  # the question's, of a mixture
