"""How well a policy answers questions that it was not trained on."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aent.data.question import Question
from aent.evaluation.pass_at_k import by_k
from aent.inference.completion import GenerationRequest
from aent.inference.fleet import Fleet
from aent.models.tokenizer import Tokenizer
from aent.recipe.schema import EvaluationSection
from aent.tasks.judge import JudgePool


@dataclass(frozen=True)
class Answer:
    """One response to one question."""

    question: Question
    response: str
    reward: float  # in [0, 1]
    error: str  # the judge's, '' if it had none
    length: int  # tokens
    truncated: bool  # ended by the length limit


@dataclass(frozen=True)
class EvaluationResult:
    """Means over all responses; ``answers`` stand question by question."""

    accuracy: float  # mean reward
    standard_error: float  # of accuracy, over questions; NaN for a single one
    mean_length: float  # tokens
    truncated_share: float
    judge_errors: int
    pass_at_k: dict[int, float]  # k = 1, 2, 4, ... and the samples a question; right: reward 1
    answers: list[Answer]


def evaluate(
    fleet: Fleet,
    tokenizer: Tokenizer,
    judge: JudgePool,
    questions: Sequence[Question],
    section: EvaluationSection,
    *,
    system_prompt: str | None,
    max_response_tokens: int,
    version: int,
    seed: int = 0,
    on_progress: Callable[[], None] | None = None,
) -> EvaluationResult:
    """Have ``section.samples`` responses to every question written and judged.

    Same weights, same seed: the same responses, up to the engine's rounding.

    Raises ValueError without questions, RuntimeError if a token was not written by weight version
    ``version``, EngineError as the client does.
    """
    if not questions:
        raise ValueError("an evaluation needs held-out questions (task.heldout)")
    repeated = [q for q in questions for _ in range(section.samples)]
    requests = [
        GenerationRequest(
            prompt_ids=tokenizer.chat_prompt(question.prompt, system_prompt),
            max_tokens=max_response_tokens,
            temperature=section.temperature,
            top_p=section.top_p,
            top_k=section.top_k,
            seed=random.Random(f"evaluation/{seed}/{i}").getrandbits(31),
            stop_token_ids=tokenizer.stop_ids,
        )
        for i, question in enumerate(repeated)
    ]
    completions = fleet.generate_sync(requests, on_progress)
    versions = {v for c in completions for v in c.versions}
    if versions != {version}:
        raise RuntimeError(
            f"evaluation of weight version {version}: engines wrote with {sorted(versions)}"
        )
    responses = [tokenizer.decode(c.token_ids) for c in completions]
    verdicts = judge.judge(repeated, responses)
    answers = [
        Answer(q, text, v.reward, v.error, len(c.token_ids), c.finish_reason == "length")
        for q, text, v, c in zip(repeated, responses, verdicts, completions)
    ]
    return summarize(answers, section.samples)


def summarize(answers: list[Answer], samples: int) -> EvaluationResult:
    """Means of answers of which every ``samples`` neighbours belong to one question."""
    rewards = [a.reward for a in answers]
    # responses to one question are not independent: the error is that of the questions' means
    means = [statistics.fmean(rewards[i : i + samples]) for i in range(0, len(rewards), samples)]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    right = [sum(r >= 1 for r in rewards[i : i + samples]) for i in range(0, len(rewards), samples)]
    return EvaluationResult(
        accuracy=statistics.fmean(means),
        standard_error=error,
        mean_length=statistics.fmean(a.length for a in answers),
        truncated_share=statistics.fmean(a.truncated for a in answers),
        judge_errors=sum(bool(a.error) for a in answers),
        pass_at_k={k: statistics.fmean(v) for k, v in by_k(samples, right).items()},
        answers=answers,
    )
