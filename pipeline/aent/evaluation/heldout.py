"""Scores a policy on held-out questions."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from aent.data.question import Question
from aent.evaluation.pass_at_k import by_k
from aent.recipe.operation import EvaluationSection
from aent.tasks.asking import Answer, Asked, Asker, SamplingParams


@dataclass(frozen=True)
class EvaluationResult:
    """Means over all responses; ``answers`` are ordered by question."""

    accuracy: float  # mean reward by the first grader
    standard_error: float  # of accuracy, over questions; NaN for one question
    mean_length: float  # tokens
    truncated_share: float
    judge_errors: int
    pass_at_k: dict[int, float]  # k = 1, 2, 4, ... and the samples per question; right: reward 1
    answers: list[Answer]


def evaluate(
    asker: Asker,
    questions: Sequence[Question],
    section: EvaluationSection,
    *,
    system_prompt: str | None,
    max_response_tokens: int,
    version: int,
    seed: int = 0,
) -> EvaluationResult:
    """Sample and grade ``section.samples`` responses to every question.

    The same weights and seed give the same responses, up to the engine's rounding.

    Raises ValueError without questions, RuntimeError if a token was not written by weight version
    ``version``, EngineError as the client does.
    """
    if not questions:
        raise ValueError("an evaluation needs held-out questions (task.heldout)")
    repeated = [q for q in questions for _ in range(section.samples)]
    wanted = [
        Asked(
            question,
            asker.tokenizer.chat_prompt(*question.turns(system_prompt)),
            random.Random(f"evaluation/{seed}/{i}").getrandbits(31),
        )
        for i, question in enumerate(repeated)
    ]
    params = SamplingParams(max_response_tokens, section.temperature, section.top_p, section.top_k)
    groups = [wanted[i : i + section.samples] for i in range(0, len(wanted), section.samples)]
    answers = [answer for group in asker.ask(groups, params) for answer in group]
    versions = {v for answer in answers for v in answer.completion.versions}
    if versions != {version}:
        raise RuntimeError(
            f"evaluation of weight version {version}: engines wrote with {sorted(versions)}"
        )
    return summarize(answers, section.samples)


def summarize(answers: list[Answer], samples: int) -> EvaluationResult:
    """Means of answers, of which every ``samples`` adjacent ones belong to one question."""
    rewards = [a.verdict.score for a in answers]
    # responses to one question are not independent, so the error is of the questions' means
    means = [statistics.fmean(rewards[i : i + samples]) for i in range(0, len(rewards), samples)]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    right = [sum(r >= 1 for r in rewards[i : i + samples]) for i in range(0, len(rewards), samples)]
    return EvaluationResult(
        accuracy=statistics.fmean(means),
        standard_error=error,
        mean_length=statistics.fmean(a.tokens for a in answers),
        truncated_share=statistics.fmean(a.truncated for a in answers),
        judge_errors=sum(bool(a.verdict.error) for a in answers),
        pass_at_k={k: statistics.fmean(v) for k, v in by_k(samples, right).items()},
        answers=answers,
    )
