"""From public files to files of questions (``aent data NAME FILE...``): which, from where, how.

Nothing is downloaded: a cluster's nodes often cannot, and whoever runs an evaluation should know
which file it was. ``count`` is what a source publishes, or what is known to be left of it.
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
    """One public data set, as this project uses it."""

    where: str  # what to fetch
    count: int  # questions that come out
    question: Callable[[Row], str | None]  # None: this row is left out
    answer: Callable[[Row], str | None]  # None: this row is left out
    keep: Callable[[Row], bool] = lambda row: True
    verbatim: bool = False  # answers are programs, to which a dollar sign belongs
    sample: int | None = None  # so many of what is left, drawn with seed 0


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
    """At least one of OpenR1's own generations was found right by math-verify: the answer can be
    verified."""
    return any(row["correctness_math_verify"] or ())


def _checked(row: Row) -> str:
    """HumanEval's tests are a function, which gets the program's."""
    return f"{row['test']}\n\ncheck({row['entry_point']})"


def _with_tests(row: Row) -> str:
    """A task of MBPP as its authors ask it (arXiv 2108.07732, figure 2): only the tests say how the
    function is called."""
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
    """What became of the rows of the public files."""

    read: int
    left_out: int  # by the source's rule, or without a question or an answer that can be read
    repeated: int  # the same question again
    written: int
    # a sentence for each question that has two answers, neither of which is written
    conflicts: tuple[str, ...] = ()


def hint(path: str | Path) -> str:
    """How to come by a file that is not there, if its name is one of ours; else nothing."""
    name = Path(path).stem
    if name not in SOURCES:
        return ""
    return f": get {SOURCES[name].where}, then: aent data {name} FILE... --out {path}"


@dataclass
class _Found:
    """The questions of some files, and what became of their rows so far."""

    source: Source
    answers: dict[str, str] = field(default_factory=dict)  # by question, in the files' order
    places: dict[str, str] = field(default_factory=dict)  # file and row of each
    conflicts: dict[str, str] = field(default_factory=dict)  # a sentence, by question
    read: int = 0
    left_out: int = 0
    repeated: int = 0

    def take(self, path: Path, number: int, row: Row) -> None:
        """Raises ValueError where the row has not what the source's rows have."""
        self.read += 1
        try:
            kept = self.source.keep(row)
            question, answer = self.source.question(row), self.source.answer(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not from {self.source.where}: row with {', '.join(map(repr, row))} "
                f"({type(error).__name__}: {error})"
            ) from None
        # '$3$, $4$' and '3, 4' are one answer, which a judge reads in the second form only
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
                f"{path}: row {number} has the question of {self.places[question]} and another "
                f"answer: {answer[:100]!r}, there {self.answers[question][:100]!r}"
            )


def prepare(name: str, paths: Sequence[Path], out: Path) -> Prepared:
    """Write the questions of the public files at ``paths`` to ``out`` (JSONL), in their order;
    those that have two answers are left out, as nobody knows which is right.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it; ``out`` is
    whole or untouched.
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
        raise ValueError(f"{', '.join(map(str, paths))}: no question of {name} is in there")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        for question, answer in pairs:
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    os.replace(beside, out)
    conflicts = tuple(found.conflicts.values())
    return Prepared(found.read, found.left_out, found.repeated, len(pairs), conflicts)
