"""What each source of a mixture contributes to a step or an evaluation. Names: docs/metrics.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from aent.data.rollout import Rollout
from aent.evaluation.heldout import EvaluationResult
from aent.orchestrator.records import grader_metrics


def source_metrics(rollout: Rollout, finished_only: bool) -> dict[str, float]:
    """Metrics of the step's responses at the policy's own temperature, by source; empty without."""
    right = rollout.right(finished_only)
    own = [i for i, sample in enumerate(rollout.samples) if not sample.rerolled]
    found: dict[str, float] = {}
    for source in _in_order(rollout.samples[i].source for i in own):
        chosen = [i for i in own if rollout.samples[i].source == source]
        samples = [rollout.samples[i] for i in chosen]
        groups: dict[int, set[float]] = {}
        for sample in samples:
            groups.setdefault(sample.group, set()).add(sample.reward)
        named = f"source/{source}"
        found |= {
            f"{named}/prompts": float(len(groups)),
            f"{named}/reward_mean": statistics.fmean(s.reward for s in samples),
            f"{named}/right_share": statistics.fmean(bool(right[i]) for i in chosen),
            f"{named}/groups_without_signal": statistics.fmean(
                len(rewards) == 1 for rewards in groups.values()
            ),
            f"{named}/length_mean": statistics.fmean(len(s.response_ids) for s in samples),
            f"{named}/truncated_share": statistics.fmean(
                s.finish_reason == "length" for s in samples
            ),
        }
        found |= grader_metrics([rollout.verdicts[i] for i in chosen], f"{named}/")
    return found


def heldout_by_source(result: EvaluationResult) -> dict[str, float]:
    """Accuracy and graders of each source's held-out questions; empty without sources."""
    found: dict[str, float] = {}
    for source in _in_order(answer.question.source for answer in result.answers):
        verdicts = [a.verdict for a in result.answers if a.question.source == source]
        named = f"evaluation/source/{source}"
        found[f"{named}/accuracy"] = statistics.fmean(verdict.score for verdict in verdicts)
        found |= grader_metrics(verdicts, f"{named}/")
    return found


def _in_order(sources: Iterable[str]) -> list[str]:
    """The distinct named sources, sorted."""
    return sorted(set(sources) - {""})
