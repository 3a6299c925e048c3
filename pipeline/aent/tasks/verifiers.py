"""Verifiers: pure functions of a response and its question, with a reward in [0, 1].

They may hang or throw on hostile text: call them through ``aent.tasks.judge``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from aent.tasks import Question

Verifier = Callable[[str, Question], float]

# a minus sign belongs to the number unless something stands directly before it, as in 7-5
_NUMBER = re.compile(r"(?<!\w)(?<![0-9]\.)-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_ANSWER = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)  # as reasoning-gym has it


def make(verifier: str, dataset: str, config: dict[str, Any]) -> Verifier:
    """Return the verifier that a recipe names, with what it needs imported."""
    if verifier == "last_number":
        return last_number
    if verifier == "math_verify":
        return _math_verify()
    return _reasoning_gym(dataset, config)


def last_number_in(text: str) -> Decimal | None:
    """Return the last number written in ``text``: 1,234.50 and -2 are numbers, th2 is not."""
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def last_number(response: str, question: Question) -> float:
    """1 if the response's last number equals the answer, else 0."""
    number = last_number_in(response)
    return float(number is not None and number == last_number_in(question.answer))


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} (or \\boxed 7) of a solution."""
    _, found, rest = text.rpartition("\\boxed")
    rest = rest.strip()
    if not found or not rest:
        return None
    if rest[0] != "{":
        return rest.split("$")[0].strip() or None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip() or None
    return None


def answer_in(verifier: str, response: str) -> str | None:
    """The answer of a response as text, equal for equal answers, as far as text tells; None where
    there is none.

    last_number: the last number, without leading and trailing zeros; math_verify: what stands in
    the last \\boxed{}, without white space; reasoning_gym: what stands in the last <answer> tags,
    or else the whole response.
    """
    if verifier == "last_number":
        number = last_number_in(response)
        return None if number is None else format((number + 0).normalize(), "f")
    if verifier == "math_verify":
        boxed = last_boxed(response)
        return None if boxed is None else "".join(boxed.split())
    *_, tagged = _ANSWER.findall(response) or [response]
    return tagged.strip() or None


def _reasoning_gym(dataset: str, config: dict[str, Any]) -> Verifier:
    """The data set's own scorer, of what stands in <answer> tags or else of the whole response."""
    import reasoning_gym
    from reasoning_gym.utils import extract_answer

    scorer = reasoning_gym.create_dataset(dataset, seed=0, size=1, **config).score_answer

    def verify(response: str, question: Question) -> float:
        tagged = extract_answer(response)
        entry = {
            "question": question.prompt,
            "answer": question.answer,
            "metadata": question.metadata,
        }
        return float(scorer(response.strip() if tagged is None else tagged, entry))

    return verify


def _math_verify() -> Verifier:
    """1 if math-verify finds the response's answer mathematically equal to the reference.

    The reference may be bare LaTeX, as the public data sets have it. An interval and the inequality
    that says the same are equal. What math-verify gets wrong: tests/tasks/answers.tsv.
    """
    import math_verify

    math_verify.parse(
        "$1$", parsing_timeout=None
    )  # imports its parser now, not in an answer's time

    # its own time limits are off: the judge kills what takes too long, and counts it
    def verify(response: str, question: Question) -> float:
        reference = math_verify.parse(
            in_mathematics(question.answer), parsing_timeout=None, raise_on_error=True
        )
        if not reference:
            raise ValueError(f"math-verify cannot read the reference answer {question.answer!r}")
        answer = math_verify.parse(response, parsing_timeout=None, raise_on_error=True)
        return float(
            math_verify.verify(
                reference,
                answer,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
        )

    return verify


def in_mathematics(answer: str) -> str:
    """The reference answer between LaTeX's delimiters, unless it has some."""
    delimited = any(mark in answer for mark in (r"\boxed", r"\(", r"\[")) or re.search(
        r"(?<!\\)\$", answer
    )
    return answer if delimited else f"${answer}$"
