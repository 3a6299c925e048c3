"""Held-out questions and suites, scored with the weights after so many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aent.data.question import Question
from aent.evaluation.heldout import EvaluationResult, evaluate
from aent.orchestrator.report import Report
from aent.recipe.schema import Recipe
from aent.tasks.asking import Asker


@dataclass(frozen=True)
class Evaluator:
    """Rank 0's evaluator, which queries the engines."""

    recipe: Recipe
    asker: Asker
    heldout: Sequence[Question]
    suites: dict[str, list[Question]]  # by name
    report: Report

    def evaluate(self, step: int) -> None:
        """Score the suites and the held-out questions with the weights after ``step`` steps."""
        for name, questions in self.suites.items():
            self.report.suite(step, name, self._score(questions, step))
        if self.heldout:
            self.report.heldout(step, self._score(self.heldout, step))

    def _score(self, questions: Sequence[Question], step: int) -> EvaluationResult:
        recipe = self.recipe
        return evaluate(
            self.asker,
            questions,
            recipe.evaluation,
            system_prompt=recipe.task.system_prompt,
            max_response_tokens=recipe.rollout.max_response_tokens,
            version=step,
            seed=recipe.seed,
        )
