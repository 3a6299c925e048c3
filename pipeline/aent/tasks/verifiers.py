"""Verifiers: pure functions of a response and its question, with a reward in [0, 1].

They may hang or raise on hostile text: call them through ``aent.tasks.judge``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from aent.data.question import Question

READS_ANSWERS = ("last_number", "math_verify", "reasoning_gym")  # kinds that ``answer_in`` supports
Verifier = Callable[[str, Question], float]

# a minus sign belongs to the number unless something directly precedes it, as in 7-5
_VALUE = (
    r"(?:[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}(?!\w))?"
)
_NUMBER = re.compile(rf"(?<!\w)(?<![0-9]\.)-?{_VALUE}")
_WHOLE = re.compile(rf"[-+]?{_VALUE}")
# dashes used as a minus sign
_MINUS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"})
_COMMA = re.compile(r"\{,\}|,\\!")  # LaTeX's commas without a space after them: 1{,}234 and 1,\!234
# LaTeX's commands for upright text, and its spaces
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_SPACE = re.compile(r"(?:\s|~|\\[ ,;])+")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '][^\W\d_]+)*")
_ANSWER = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)  # as in reasoning-gym


def make(grader: str, dataset: str, config: dict[str, Any]) -> Verifier:
    """Return the verifier for a grader's kind, with its imports done."""
    if grader == "last_number":
        return last_number
    if grader == "math_verify":
        return _math_verify()
    return _reasoning_gym(dataset, config)


def check_reference(verify: Verifier, question: Question) -> None:
    """Raise an error if even the question's own answer, boxed, counts as wrong: then every response
    would."""
    own = re.sub(r"(?<!\\)\$", "", question.answer)
    if verify(own if r"\boxed" in own else rf"\boxed{{{own}}}", question) < 1:
        raise ValueError(f"the reference answer {question.answer!r} does not pass as right itself")


def last_number_in(text: str) -> Decimal | None:
    """Return the last number in ``text``: 1,234.50, LaTeX's 1{,}234, -2, .5 and 1e3 are numbers,
    th2 is not."""
    numbers = _NUMBER.findall(_COMMA.sub(",", text.translate(_MINUS)))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def as_number(text: str) -> Decimal | None:
    """Return the number if ``text`` as a whole is one; None for 3/4 or 50%, which only contain
    one."""
    plain = _COMMA.sub(",", text.strip().translate(_MINUS))
    return Decimal(plain.replace(",", "")) if _WHOLE.fullmatch(plain) else None


def words_of(answer: str) -> str | None:
    """An answer made of words as plain lower-case text; None for mathematics. One or two letters
    count as mathematics (yx is the product xy), unless one is an o (no, on, or)."""
    plain = _SPACE.sub(" ", _TEXT.sub(r"\1", answer)).strip(" $.")
    if not _WORDS.fullmatch(plain):
        return None
    words = re.split("[ ']", plain.casefold())
    is_words = any(len(word) > 2 or (len(word) == 2 and "o" in word) for word in words)
    return " ".join(words) if is_words else None


def last_number(response: str, question: Question) -> float:
    """1 if the response's last number equals the answer, else 0. The whole answer must be a number
    (``tasks.load`` refuses others)."""
    number = last_number_in(response)
    return float(number is not None and number == as_number(question.answer))


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


def answer_in(grader: str, response: str) -> str | None:
    """The answer of a response as text, equal for equal answers as far as text can show; None if
    there is none.

    last_number: the last number, without leading and trailing zeros; math_verify: what stands in
    the last \\boxed{}, without white space; reasoning_gym: what stands in the last <answer> tags,
    or else the whole response.
    """
    if grader == "last_number":
        number = last_number_in(response)
        return None if number is None else format((number + 0).normalize(), "f")
    if grader == "math_verify":
        boxed = last_boxed(response)
        return None if boxed is None else "".join(boxed.split())
    return _tagged(response) or None


def _tagged(response: str) -> str:
    """What stands in the last <answer> tags, or else the whole response."""
    # without what follows the last end: from each of many tags there, the pattern would read on
    # to the end of the text in vain
    closed = "".join(response.rpartition("</answer>")[:2])
    *_, tagged = _ANSWER.findall(closed) or [response]
    return tagged.strip()


def _reasoning_gym(dataset: str, config: dict[str, Any]) -> Verifier:
    """The data set's own scorer, applied to the text in <answer> tags, else to the whole
    response."""
    import reasoning_gym

    scorer = reasoning_gym.create_dataset(dataset, seed=0, size=1, **config).score_answer

    def verify(response: str, question: Question) -> float:
        entry = {
            "question": question.prompt,
            "answer": question.answer,
            "metadata": question.metadata,
        }
        return float(scorer(_tagged(response), entry))

    return verify


def _math_verify() -> Verifier:
    """1 if math-verify finds the response's answer mathematically equal to the reference.

    The reference may be bare LaTeX, as in the public data sets. An interval equals the inequality
    with the same meaning. If reference and boxed answer are words, they are compared as text,
    because math-verify takes words for products of letters, so that seat equals east. Its known
    errors are in tests/tasks/answers.tsv.
    """
    import math_verify

    math_verify.parse(
        "$1$", parsing_timeout=None
    )  # imports its parser now, not during the first answer's time limit

    # its own time limits are off: the pool kills what takes too long, and counts it
    def verify(response: str, question: Question) -> float:
        reference = _read_mathematics(question.answer)
        words, said = words_of(question.answer), words_of(last_boxed(response) or "")
        if words is not None and said is not None:
            return float(words == said)
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


def _read_mathematics(answer: str) -> Any:
    """math-verify's reading of a reference answer. Raises ValueError, and what sympy raises."""
    import math_verify

    parsed = math_verify.parse(in_mathematics(answer), parsing_timeout=None, raise_on_error=True)
    if not parsed or words_of(answer) == "nan":  # an empty cell of a table
        raise ValueError(f"math-verify cannot read the reference answer {answer!r}")
    return parsed


def in_mathematics(answer: str) -> str:
    """The reference answer between LaTeX's delimiters, unless it has some."""
    delimited = any(mark in answer for mark in (r"\boxed", r"\(", r"\[")) or re.search(
        r"(?<!\\)\$", answer
    )
    return answer if delimited else f"${answer}$"
