"""The data that a trace shows of a response. Imports neither torch nor MLflow."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TracedGrade:
    """One grader's result for the response."""

    name: str  # the grader's
    kind: str | None  # as in task.graders; None: it is no longer there
    weight: float | None
    reward: float | None  # before its weight; None: it does not score this response
    parts: dict[str, float | None]
    error: str
    seconds: float


@dataclass(frozen=True)
class Traced:
    """One response of a step."""

    sample: int  # index in the step; the trace's ids are a hash of (run, step, sample)
    group: int
    item: int  # index of the question in its task
    prompt: str
    response: str
    reward: float | None  # here and below, None: not finite
    entropy: float | None  # mean, nats
    logprob: float | None  # mean, by the policy that wrote it
    prompt_tokens: int
    tokens: int
    finish_reason: str
    first_version: int  # of the weights that wrote the first token
    version: int  # and the last one
    grades: tuple[TracedGrade, ...]


@dataclass(frozen=True)
class TracedStep:
    """Responses of one step, recorded at ``time``, ms since 1970."""

    step: int
    time: int
    responses: tuple[Traced, ...]

    def to_json(self) -> str:
        """JSON; a number that is not finite is null."""
        return json.dumps(_finite(asdict(self)))

    @staticmethod
    def from_json(text: str) -> TracedStep:
        """The inverse of ``to_json``. Raises ValueError, KeyError or TypeError for any other
        text."""
        content = json.loads(text)
        responses = tuple(
            Traced(**row | {"grades": tuple(TracedGrade(**grade) for grade in row["grades"])})
            for row in content["responses"]
        )
        return TracedStep(content["step"], content["time"], responses)


def spread(groups: Sequence[int], most: int) -> list[int]:
    """Indices of at most ``most`` responses: the first of every group, then the second of every
    group, and so on, in the step's order. groups: the group of each response."""
    seen: Counter[int] = Counter()
    rounds = []
    for place, group in enumerate(groups):
        rounds.append((seen[group], place))
        seen[group] += 1
    return sorted(place for _, place in sorted(rounds)[:most])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
