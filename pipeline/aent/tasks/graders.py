"""Graders: turns a recipe's section into a function of responses and their question, and its
results into rewards.

Graders may hang or raise on hostile text: call them through ``aent.tasks.judge``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent.data.rollout import Grade, Verdict
from aent.tasks import functions, verifiers
from aent.tasks.code import local
from aent.tasks.functions import Call
from aent.tasks.verifiers import Verifier

AT_ONCE = 64  # responses that a process grades concurrently with an asynchronous function
Reading = tuple[float | None, dict[str, float]]  # a reward and its parts


@dataclass(frozen=True)
class Grader:
    """A grader, imported and ready."""

    call: Call  # takes one response, or a whole group
    style: str = "aent"  # how to read its values
    group: bool = False
    at_once: int = 0  # responses graded concurrently; 0: it is not asynchronous
    columns: tuple[str, ...] = ()  # that every question must have
    verifier: Verifier | None = None  # if it reads references
    source: Path | None = None  # of a custom function
    lacks: tuple[str, ...] = ()  # what its sandbox lacks here, in sentences

    def read(self, values: Any, count: int) -> list[Reading]:
        """Read what the call returned for ``count`` responses. Raises ValueError if it is not a
        reward."""
        many = self.group or self.style.startswith("trl")
        if not many:
            return [_reading(values, self.style)]
        if isinstance(values, str | Mapping) or not hasattr(values, "__len__"):
            raise ValueError(f"{_shown(values)} was returned for {count} responses, not a list")
        if len(values) != count:
            raise ValueError(f"{len(values)} values were returned for {count} responses")
        return [_reading(value, self.style) for value in values]


def make(spec: dict[str, Any], dataset: str, config: dict[str, Any]) -> Grader:
    """The grader that a section (as a mapping) describes, with its imports done.

    dataset, config: reasoning-gym's. Raises ValueError with one sentence, or ImportError.
    """
    if spec["kind"] == "python":
        call, asynchronous = functions.adapted(spec, dataset)
        return Grader(
            call,
            spec["style"],
            spec["group"],
            AT_ONCE if asynchronous else 0,
            tuple(functions.columns(spec)),
            source=functions.source_of(spec["function"]),
        )
    if spec["kind"] in ("http", "judge", "reward_model"):
        from aent.tasks import services  # late: imports httpx

        calls = {
            "http": services.http_call,
            "judge": services.judge_call,
            "reward_model": services.reward_model_call,
        }
        group = spec["kind"] == "http"
        return Grader(calls[spec["kind"]](spec), group=group, at_once=spec["concurrency"])
    if spec["kind"] == "code":
        if spec["url"] is not None:
            from aent.tasks.code import fusion  # late: imports httpx

            return Grader(fusion.call_of(spec), at_once=spec["concurrency"])
        call, lacks = local.call_of(spec)
        return Grader(call, lacks=tuple(lacks))
    verify = verifiers.make(spec["kind"], dataset, config)
    return Grader(lambda responses, question: verify(responses[0].text, question), verifier=verify)


def verdict(grades: Sequence[Grade], weights: Mapping[str, float]) -> Verdict:
    """The sum of the graders' rewards, weighted by their names; 0 if one of them failed."""
    failed = next((grade for grade in grades if grade.error), None)
    if failed is not None:
        which = f" [{failed.name}]" if len(grades) > 1 else ""
        return Verdict(0.0, failed.error + which, tuple(grades))
    reward = sum(weights[g.name] * g.reward for g in grades if g.reward is not None)
    return Verdict(float(reward), "", tuple(grades))


def _reading(value: Any, style: str) -> Reading:
    if style.startswith("trl") and value is None:
        return None, {}  # TRL: the function does not score this completion
    if style == "verl":
        return _verl_reading(value)
    if not isinstance(value, Mapping):
        return _number(value), {}
    if not value:
        raise ValueError("an empty mapping was returned, not a number or named parts")
    parts = {_name(key): _number(part) for key, part in value.items()}
    return sum(parts.values()), parts


def _verl_reading(value: Any) -> Reading:
    """A number, a mapping with ``score`` (its other numbers are recorded as parts), or a sequence
    that begins with the score."""
    if isinstance(value, Mapping):
        if "score" not in value:
            raise ValueError(f"a mapping without 'score' was returned: {_shown(value)}")
        others = {
            _name(key): float(part)
            for key, part in value.items()
            if key != "score" and isinstance(part, int | float) and math.isfinite(part)
        }
        return _number(value["score"]), others
    return _number(value[0] if isinstance(value, list | tuple) and value else value), {}


def _number(value: Any) -> float:
    try:
        found = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{_shown(value)} was returned, not a number")
    return found


def _name(key: Any) -> str:
    """A part's name, which is part of a metric's."""
    if isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_-]+", key):
        return key
    raise ValueError(f"{_shown(key)} cannot be a part's name: use letters, digits, _ and -")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
