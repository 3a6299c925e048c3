"""What MLflow shows on separate pages: responses as traces, questions as data sets, the policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from aent.data.rollout import Rollout, Verdict
from aent.orchestrator.tables import shortened
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.tasks import Task
from aent.tasks.mixture import appointed
from aent.tracking import datasets, journal
from aent.tracking.policies import SavedPolicy
from aent.tracking.traced import Traced, TracedGrade, TracedStep, spread
from aent.tracking.tracker import Tracker

# fields of the recipe's task that say how answers are graded, not where questions are from
JUDGING = {
    "graders", "finished_only", "judge_processes", "judge_timeout_s", "judge_memory_gib",
    "system_prompt", "template",
}  # fmt: skip


def log_traces(
    tracker: Tracker, recipe: Recipe, step: int, rollout: Rollout, entropies: Sequence[float]
) -> None:
    """Record ``tracking.traces`` of the step's responses, from as many prompts as possible.

    entropies: mean of each response, nats.
    """
    chosen = spread([sample.group for sample in rollout.samples], recipe.tracking.traces)
    if chosen:
        responses = tuple(_traced(recipe, rollout, place, entropies[place]) for place in chosen)
        made = TracedStep(step, journal.now(), responses)
        tracker.log_entity("traces", f"traces/step_{step:06d}.json", made.to_json)


def _traced(recipe: Recipe, rollout: Rollout, place: int, entropy: float) -> Traced:
    sample = rollout.samples[place]
    return Traced(
        sample=place,
        group=sample.group,
        item=sample.item,
        prompt=shortened(rollout.prompts[place]),
        response=shortened(rollout.responses[place]),
        reward=sample.reward,
        entropy=entropy,
        logprob=sum(sample.logprobs) / len(sample.logprobs),
        prompt_tokens=len(sample.prompt_ids),
        tokens=len(sample.response_ids),
        finish_reason=sample.finish_reason,
        first_version=sample.versions[0],
        version=sample.versions[-1],
        grades=_grades(recipe, sample.source, rollout.verdicts[place]),
    )


def _grades(recipe: Recipe, source: str, verdict: Verdict) -> tuple[TracedGrade, ...]:
    # a step sampled by an earlier start may have been graded with an earlier recipe's graders
    of_source = [each.grader for each in appointed(recipe.task) if each.source == source]
    graders = {grader.name: grader for grader in of_source}
    kinds = {name: grader.kind for name, grader in graders.items()}
    weights = {name: grader.weight for name, grader in graders.items()}
    return tuple(
        TracedGrade(
            grade.name,
            kinds.get(grade.name),
            weights.get(grade.name),
            grade.reward,
            dict(grade.parts),
            grade.error,
            grade.seconds,
        )
        for grade in verdict.grades
    )


def log_datasets(tracker: Tracker, recipe: Recipe, task: Task) -> None:
    """Record which questions the run trains on and holds out."""
    source = recipe.task.model_dump(mode="json", exclude=JUDGING)
    kind: str = "mixture" if recipe.task.sources else recipe.task.kind
    if recipe.task.path is not None:  # as MLflow names a file
        kind, source["uri"] = "local", str(data_path(recipe.task.path).absolute())
    questions = {"training": task.train, "evaluation": task.heldout}
    text = json.dumps(datasets.described(task.name, kind, source, questions), indent=2) + "\n"
    # questions that have changed since the last start are further data sets of the run
    name = f"datasets/{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    tracker.log_entity("datasets", name, lambda: text)


def log_policy(tracker: Tracker, recipe: Recipe, folder: Path) -> None:
    """Record the policy in ``folder`` (inside the run's folder) at the run's end."""
    steps, register_as = recipe.steps, recipe.tracking.register_as
    tracker.log_entity(
        "policy",
        f"policies/step_{steps:06d}.json",
        lambda: SavedPolicy.of(folder, recipe.name, steps, register_as).to_json(),
    )
