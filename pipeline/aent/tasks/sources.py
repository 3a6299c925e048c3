"""Converts public files to files of questions (``aent data NAME FILE...``).

It downloads nothing: a cluster's nodes often cannot, and you should know which file an evaluation
used. ``count`` is the published number of questions, or the number known to remain.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aent.tasks import files
from aent.tasks.verifiers import last_boxed

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One public data set, and how this project uses it."""

    where: str  # which files to fetch
    count: int  # questions that result
    question: Callable[[Row], str | None]  # None: this row is left out
    answer: Callable[[Row], str | None]  # None: this row is left out
    keep: Callable[[Row], bool] = lambda row: True
    verbatim: bool = False  # answers are programs, in which a dollar sign has a meaning
    sample: int | None = None  # how many of the remaining ones are drawn, with seed 0


def _column(name: str) -> Callable[[Row], str | None]:
    return lambda row: files.as_text(row[name]) or None


def _after_hashes(row: Row) -> str | None:
    """GSM8K ends a solution with a line '#### 1,234'."""
    _, found, answer = row["answer"].rpartition("####")
    return answer.strip().replace(",", "") if found else None


def _boxed_solution(row: Row) -> str | None:
    return last_boxed(row["solution"])


def _final_answers(row: Row) -> str | None:
    """OlympiadBench has a list of answers."""
    return ", ".join(row["final_answer"]) or None


def _some_generation_is_right(row: Row) -> bool:
    """Whether math-verify found at least one of OpenR1's own generations right, so that the answer
    is verifiable."""
    return any(row["correctness_math_verify"] or ())


def _checked(row: Row) -> str:
    """HumanEval's tests are a function that takes the program's function."""
    return f"{row['test']}\n\ncheck({row['entry_point']})"


def _with_tests(row: Row) -> str:
    """An MBPP question in its authors' form (arXiv 2108.07732, figure 2): only the tests name the
    function."""
    tests = "\n".join(row["test_list"])
    return f"{row['prompt'].strip()}\nYour code should pass these tests:\n\n{tests}"


def _asserts(row: Row) -> str:
    return "\n".join([*row["test_imports"], *row["test_list"]])


def _asserts_plus(row: Row) -> str:
    return "\n".join([*row["test_imports"], row["test"]])


_HENDRYCKS = (
    "EleutherAI/hendrycks_math on Hugging Face, the {split} parquet files of all seven subjects"
)
_GSM8K = "grade_school_math/data/{split}.jsonl of github.com/openai/grade-school-math"
_QWEN = "evaluation/data/{name}/test.jsonl of github.com/QwenLM/Qwen2.5-Math"

SOURCES: dict[str, Source] = {
    # evaluation
    "math-500": Source(
        "HuggingFaceH4/MATH-500 on Hugging Face, test.jsonl",
        500,
        _column("problem"),
        _column("answer"),
    ),
    "math-hard": Source(
        _HENDRYCKS.format(split="test"),
        1324,
        _column("problem"),
        _boxed_solution,
        keep=lambda row: row["level"] == "Level 5",
    ),
    "aime24": Source(
        _QWEN.format(name="aime24"),
        30,
        _column("problem"),
        _column("answer"),
    ),
    "amc": Source(
        _QWEN.format(name="amc23"),
        40,
        _column("question"),
        _column("answer"),
    ),
    "minerva": Source(
        _QWEN.format(name="minerva_math"),
        272,
        _column("problem"),
        _boxed_solution,
    ),
    "olympiadbench": Source(
        _QWEN.format(name="olympiadbench"),
        675,
        _column("question"),
        _final_answers,
    ),
    "gsm8k": Source(_GSM8K.format(split="test"), 1319, _column("question"), _after_hashes),
    "humaneval": Source(
        "data/HumanEval.jsonl.gz (unpacked) of github.com/openai/human-eval",
        164,
        _column("prompt"),
        _checked,
        verbatim=True,
    ),
    "humaneval-plus": Source(
        "evalplus/humanevalplus on Hugging Face, the test parquet file",
        164,
        _column("prompt"),
        _checked,
        verbatim=True,
    ),
    "mbpp": Source(
        "google-research-datasets/mbpp on Hugging Face, sanitized, the test parquet file",
        257,
        _with_tests,
        _asserts,
        verbatim=True,
    ),
    "mbpp-plus": Source(
        "evalplus/mbppplus on Hugging Face, the test parquet file",
        378,
        _with_tests,
        _asserts_plus,
        verbatim=True,
    ),
    # training
    "math-train": Source(
        _HENDRYCKS.format(split="train"), 7500, _column("problem"), _boxed_solution
    ),
    "gsm8k-train": Source(_GSM8K.format(split="train"), 7473, _column("question"), _after_hashes),
    "openr1-math-40k": Source(
        "open-r1/OpenR1-Math-220k on Hugging Face, the parquet files of the default subset",
        40_000,
        _column("problem"),
        _column("answer"),
        keep=_some_generation_is_right,
        sample=40_000,
    ),
    "deepmath-6k": Source(
        "zwhe99/DeepMath-103K on Hugging Face, its parquet files",
        6000,
        _column("question"),
        _column("final_answer"),
        sample=6000,
    ),
}


@dataclass(frozen=True)
class Prepared:
    """How many rows of the public files were used and left out."""

    read: int
    # by the source's rule, or because the question or answer is missing or unreadable
    left_out: int
    repeated: int  # the same question again
    written: int
    # a sentence for each question with two answers, which is left out
    conflicts: tuple[str, ...] = ()


def hint(path: str | Path) -> str:
    """How to get a missing file, if its name is one of ours; else empty."""
    name = Path(path).stem
    if name not in SOURCES:
        return ""
    return f": get {SOURCES[name].where}, then: aent data {name} FILE... --out {path}"


@dataclass
class _Found:
    """The questions of some files, with counts of the rows so far."""

    source: Source
    answers: dict[str, str] = field(default_factory=dict)  # by question, in the files' order
    places: dict[str, str] = field(default_factory=dict)  # file and row of each
    conflicts: dict[str, str] = field(default_factory=dict)  # a sentence, by question
    read: int = 0
    left_out: int = 0
    repeated: int = 0

    def take(self, path: Path, number: int, row: Row) -> None:
        """Raises ValueError if the row lacks what the source's rows have."""
        self.read += 1
        try:
            kept = self.source.keep(row)
            question, answer = self.source.question(row), self.source.answer(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not from {self.source.where}: row with {', '.join(map(repr, row))} "
                f"({type(error).__name__}: {error})"
            ) from None
        # '$3$, $4$' and '3, 4' are the same answer, but graders read only the second form
        if not self.source.verbatim:
            answer = re.sub(r"(?<!\\)\$", "", answer or "")
        answer = (answer or "").strip()
        if not kept or question is None or not answer:
            self.left_out += 1
        elif question not in self.answers:
            self.answers[question], self.places[question] = answer, f"{path}, row {number}"
        elif files.same_answer(self.answers[question], answer):
            self.repeated += 1
        else:
            self.conflicts[question] = (
                f"{path}: row {number} repeats the question of {self.places[question]} with "
                f"another "
                f"answer: {answer[:100]!r}, there {self.answers[question][:100]!r}"
            )


def prepare(name: str, paths: Sequence[Path], out: Path) -> Prepared:
    """Write the questions of the public files at ``paths`` to ``out`` (JSONL), in their order.
    Questions with two answers are left out, because it is unknown which is right.

    Raises FileNotFoundError, or ValueError naming the file and the fault; then ``out`` is
    unchanged.
    """
    source = SOURCES[name]
    found = _Found(source)
    for path in paths:
        for number, row in enumerate(files.rows(path), start=1):
            found.take(path, number, row)
    pairs = [pair for pair in found.answers.items() if pair[0] not in found.conflicts]
    if source.sample is not None and len(pairs) > source.sample:
        chosen = sorted(random.Random(0).sample(range(len(pairs)), source.sample))
        found.left_out += len(pairs) - source.sample
        pairs = [pairs[i] for i in chosen]
    if not pairs:
        raise ValueError(f"{', '.join(map(str, paths))}: no question of {name} was found")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        for question, answer in pairs:
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    os.replace(beside, out)
    conflicts = tuple(found.conflicts.values())
    return Prepared(found.read, found.left_out, found.repeated, len(pairs), conflicts)
