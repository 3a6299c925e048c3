"""The tables of responses of a step, and of the held-out answers of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aent.data.rollout import Rollout, Verdict
from aent.evaluation.heldout import EvaluationResult

# limits of a table: 8,192 responses a step would be 50 MB each time
MAX_ROWS, MAX_TEXT = 256, 8192  # responses; characters of each


def sample_rows(rollout: Rollout, entropies: Sequence[float]) -> list[dict[str, Any]]:
    """The table of a step's samples: one row each, at most ``MAX_ROWS`` (whole groups first); long
    texts lose their middle. ``rollouts/`` has all of them in full as long as a checkpoint needs
    them."""
    return [
        {
            "item": sample.item,
            "group": sample.group,
            "prompt": shortened(prompt),
            "response": shortened(response),
            "reward": sample.reward,
            "grades": _grades(verdict),
            "replaced": sample.replaced,
            "entropy": entropy,
            "judge_error": verdict.error,
            "finish_reason": sample.finish_reason,
            "tokens": len(sample.response_ids),
            "logprob_mean": sum(sample.logprobs) / len(sample.logprobs),
            "version": sample.versions[-1],
        }
        for sample, prompt, response, verdict, entropy in zip(
            rollout.samples[:MAX_ROWS],
            rollout.prompts,
            rollout.responses,
            rollout.verdicts,
            entropies,
        )
    ]


def heldout_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """The table of an evaluation's answers to the held-out questions: one row each, since a
    comparison's report counts them all (``compare.collect``). The first ``MAX_ROWS`` include their
    responses; long texts lose their middle."""
    return [
        {
            "item": answer.question.index,
            "prompt": answer.question.prompt,
            "expected": shortened(answer.question.answer),
            "response": shortened(answer.response) if row < MAX_ROWS else None,
            "reward": answer.verdict.reward,
            "score": answer.verdict.score,
            "grades": _grades(answer.verdict),
            "judge_error": answer.verdict.error,
            "tokens": answer.tokens,
            "truncated": answer.truncated,
        }
        for row, answer in enumerate(result.answers)
    ]


def _grades(verdict: Verdict) -> str:
    """Each grader's reward, for a table."""
    return ", ".join(
        f"{grade.name} {'-' if grade.reward is None else format(grade.reward, 'g')}"
        for grade in verdict.grades
    )


def shortened(text: str) -> str:
    """A text of more than ``MAX_TEXT`` characters without its middle, whose length is given."""
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
