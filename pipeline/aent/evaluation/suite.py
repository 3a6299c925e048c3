"""Asks the engines a suite's questions and grades the answers, which are saved as they come; then
computes pass@k."""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aent.data.question import Question
from aent.evaluation.answers import Answers, Row
from aent.evaluation.pass_at_k import by_k, interval
from aent.evaluation.suites import Suite
from aent.tasks.asking import Answer, Asked, Asker, SamplingParams

PROGRESS_LINES = 20  # for a whole evaluation
EXPECTED = 1000  # characters kept of a reference answer; a program's tests may have a million


@dataclass(frozen=True)
class Summary:
    """The result of an evaluation. An answer is correct if its reward is 1."""

    suite: str
    questions: int
    samples: int  # per question
    pass_at_k: dict[int, float]  # k = 1, 2, 4, ... and ``samples``; 1: the mean over samples
    intervals: dict[int, tuple[float, float]]  # 95%, over questions
    mean_reward: float
    mean_length: float  # tokens
    truncated_share: float
    judge_timeouts: int
    judge_exceptions: int

    def metrics(self) -> dict[str, float]:
        """The numbers under MLflow's names."""
        found: dict[str, float] = {}
        for k, value in self.pass_at_k.items():
            low, high = self.intervals[k]
            found |= {f"pass_at_{k}": value, f"pass_at_{k}_low": low, f"pass_at_{k}_high": high}
        for name in ("mean_reward", "mean_length", "truncated_share"):
            found[name] = getattr(self, name)
        found["judge_errors"] = self.judge_timeouts + self.judge_exceptions
        return {
            f"suite/{self.suite}/{name}": float(value)
            for name, value in found.items()
            if not math.isnan(value)  # the interval for a single question
        }

    def __str__(self) -> str:
        rows = [
            (f"pass@{k}", f"{value:.3f}  [{low:.3f}, {high:.3f}]")
            for k, value in self.pass_at_k.items()
            for low, high in (self.intervals[k],)
        ]
        rows += [
            ("mean reward", f"{self.mean_reward:.3f}"),
            ("mean length, tokens", f"{self.mean_length:.1f}"),
            ("truncated share", f"{self.truncated_share:.3f}"),
            ("grader: timeouts", str(self.judge_timeouts)),
            ("grader: exceptions", str(self.judge_exceptions)),
        ]
        head = f"{self.suite}: {self.questions} questions x {self.samples} samples"
        return "\n".join([head, *(f"{name:<22}{value}" for name, value in rows)])


def settings_of(suite: Suite, questions: Sequence[Question], seed: int, model: str) -> dict:
    """The settings that must not change during an evaluation. ``model`` names the weights."""
    text = json.dumps(
        [[q.prompt, q.answer, *([q.system] if q.system else []), *q.earlier] for q in questions]
    )
    return {
        **suite.model_dump(),
        "seed": seed,
        "model": model,
        "questions_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def missing(answers: Answers, suite: Suite, questions: Sequence[Question]) -> list[tuple[int, int]]:
    """(question, sample) of every missing answer, first samples first."""
    everything = [(q, s) for s in range(suite.samples) for q in range(len(questions))]
    return [place for place in everything if place not in answers.rows]


def wanted(
    suite: Suite,
    questions: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    places: Sequence[tuple[int, int]],
    seed: int,
) -> list[Asked]:
    """The request for each (question, sample), with the same seed whenever it is repeated."""
    return [
        Asked(
            questions[question],
            prompts[question],
            random.Random(f"{suite.name}/{seed}/{question}/{sample}").getrandbits(31),
        )
        for question, sample in places
    ]


def ask(
    asker: Asker,
    suite: Suite,
    questions: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    answers: Answers,
    seed: int,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Sample and grade every missing answer, and save each as it comes.

    Raises RuntimeError if the weights changed meanwhile, and EngineError as the client does; saved
    answers are kept.
    """
    places = missing(answers, suite, questions)
    total = suite.samples * len(questions)
    versions: set[int] = set()

    def save(place: int, judged: list[Answer]) -> tuple[()]:
        (answer,) = judged
        versions.update(answer.completion.versions)
        if len(versions) > 1:
            raise RuntimeError(
                f"the engine's weights changed during the evaluation: {sorted(versions)}"
            )
        before = len(answers.rows) * PROGRESS_LINES // total
        answers.add([_row(places[place], answer)])
        if len(answers.rows) * PROGRESS_LINES // total > before:
            right = statistics.fmean(row.reward >= 1 for row in answers.rows.values())
            say(f"{suite.name}: {len(answers.rows)} of {total} answers, {right:.3f} of them right")
        return ()

    params = SamplingParams(suite.max_tokens, suite.temperature, suite.top_p, suite.top_k)
    alone = [[one] for one in wanted(suite, questions, prompts, places, seed)]
    asker.ask(alone, params, save)


def _row(place: tuple[int, int], answer: Answer) -> Row:
    question, sample = place
    return Row(
        question,
        sample,
        expected=answer.question.answer[:EXPECTED],
        response=answer.response,
        reward=answer.verdict.score,
        error=answer.verdict.error,
        length=answer.tokens,
        truncated=answer.truncated,
    )


def summarize(suite: Suite, answers: Answers) -> Summary:
    """The numbers of a complete evaluation."""
    rows = list(answers.rows.values())
    correct: dict[int, int] = {}
    for row in rows:
        correct[row.question] = correct.get(row.question, 0) + (row.reward >= 1)
    n = suite.samples
    values = by_k(n, correct.values())
    return Summary(
        suite=suite.name,
        questions=len(correct),
        samples=n,
        pass_at_k={k: statistics.fmean(v) for k, v in values.items()},
        intervals={k: interval(v, draws=n) for k, v in values.items()},
        mean_reward=statistics.fmean(r.reward for r in rows),
        mean_length=statistics.fmean(r.length for r in rows),
        truncated_share=statistics.fmean(r.truncated for r in rows),
        judge_timeouts=sum(r.error.startswith("timeout") for r in rows),
        judge_exceptions=sum(r.error.startswith("exception") for r in rows),
    )


def write_summary(summary: Summary, folder: Path) -> Path:
    """``summary.json`` in ``folder``."""
    path = folder / "summary.json"
    data: dict[str, Any] = asdict(summary)
    known = {k: v for k, v in summary.intervals.items() if not math.isnan(v[0])}
    path.write_text(json.dumps(data | {"intervals": known}, indent=2) + "\n")
    return path
