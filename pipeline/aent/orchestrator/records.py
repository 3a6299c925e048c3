"""The metrics of one step: plain numbers by name, from what the step produced."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aent.algorithm.actuators import Driven
from aent.algorithm.entropy_controls import Memory
from aent.algorithm.mini_batches import penalty
from aent.data.batch import Batch
from aent.data.rollout import Rollout, Verdict
from aent.entropy.controllers import ControllerReport, held_interval
from aent.evaluation.heldout import EvaluationResult
from aent.orchestrator.gap import Gaps
from aent.recipe.schema import Recipe
from aent.trainer.result import MinibatchResult

# phases in which the trainer's ranks compute or send; in the others they wait
TRAINER_WORKS = ("restore", "score", "train", "sync", "checkpoint")


@dataclass(frozen=True)
class StepDone:
    """The results of a step, on every rank."""

    step: int
    batch: Batch
    driven: Driven  # what the controller drives in this step's loss
    gaps: Gaps  # trainer against engine
    results: Sequence[MinibatchResult]
    report: ControllerReport
    memory: Memory  # what the entropy controls keep for the next step
    peak_flops: float | None  # of all ranks together, per second; None: not known


def step_metrics(recipe: Recipe, done: StepDone, rollout: Rollout) -> dict[str, float]:
    """All metrics of a step, except times. Names: docs/metrics.md.

    Means over tokens are over all response tokens of the step; ``loss``, ``policy_loss``,
    ``grad_norm`` are means over its mini-batches.
    """
    batch, terms, results, report = done.batch, done.driven.terms, done.results, done.report
    tokens = sum(r.tokens for r in results)
    lengths = batch.response_lengths.double()

    def per_token(name: str) -> float:
        return sum(getattr(r, name) for r in results) / tokens

    def per_update(name: str) -> float:
        return sum(getattr(r, name) for r in results) / len(results)

    # root mean square of the mini-batches' norms: there are no logits whose gradient is the step's
    policy, entropy = (
        math.sqrt(per_update(f"{name}_gradient_square")) for name in ("policy", "entropy")
    )
    bonus = done.driven.bonus * entropy
    kl_weight = None if terms.reference is None else terms.reference.weight
    return (
        aim_metrics(report, per_token(recipe.measured))
        | gap_metrics(recipe, done)
        | {
            "reward/mean": float(batch.reward[batch.own].mean()),
            "reward/std": float(batch.reward[batch.own].std(correction=0)),
            "reward/judged_mean": judged_mean(rollout),
            "reward/groups_without_signal": groups_without_signal(batch),
            "reward/groups_replaced": float(groups_replaced(rollout)),
            "reward/penalty": float(penalty(batch, recipe).mean()),
            "reward/rerolled": float((~batch.own).sum()),
            "reward/judge_errors": float(sum(bool(v.error) for v in rollout.verdicts)),
            "response/length_mean": float(lengths.mean()),
            "response/length_max": float(lengths.max()),
            "response/truncated_share": float(batch.truncated.double().mean()),
            "policy/entropy": per_token("entropy"),
            "policy/clamped_entropy": per_token("clamped_entropy"),
            "policy/kept_mass": per_token("kept_mass"),
            "policy/kl_behaviour": per_token("kl_behaviour"),
            "policy/kl_reference": per_token("kl_reference"),
            "policy/clip_fraction": per_token("clip_fraction"),
            "policy/correction": token_mean(batch, terms.correction),
            "policy/token_weight": token_mean(batch, terms.token_weight),
            "policy/masked_share": zero_share(batch, terms.surrogate_factor),
            "policy/kl_clamped_share": zero_share(batch, kl_weight),
            "gradient/policy": policy,
            "gradient/entropy": entropy,
            "gradient/bonus_share": bonus / (bonus + policy) if bonus != 0 else 0.0,
            "gradient/product": per_update("gradient_product"),
            "gradient/predicted_policy": -per_update("gradient_product"),
            "gradient/predicted_bonus": done.driven.bonus * entropy**2,
            "gradient/neutral_coefficient": results[-1].neutral_coefficient,
            "policy/invalid_tokens": sum(r.invalid_rows for r in results),
            "update/loss": per_update("loss"),
            "update/policy_loss": per_update("policy_loss"),
            "update/grad_norm": per_update("grad_norm"),
            "update/lr": results[-1].lr,
            "update/skipped": float(sum(r.update_skipped for r in results)),
            "controller/coefficient": report.coefficient,
            "controller/bonus": done.driven.bonus,
            "controller/next_coefficient": report.next_coefficient,
            "controller/error": report.error,
            "controller/move": report.move,
            "controller/at_bound": float({"low": -1, "": 0, "high": 1}[report.at_bound]),
            "controller/steps_at_bound": float(report.steps_at_bound),
            "controller/skipped": float(report.skipped),
        }
    )


def gap_metrics(recipe: Recipe, done: StepDone) -> dict[str, float]:
    """The train-inference mismatch: with the same weights, and with older ones."""
    found = {"policy/logprob_gap": done.gaps.same, "staleness/logprob_gap": done.gaps.stale}
    if recipe.rollout.max_staleness:
        behind = done.step - done.batch.versions[done.batch.loss_mask]
        found["staleness/mean"] = float(behind.double().mean())
        found["staleness/mixed_share"] = mixed_share(done.batch)
    return {name: value for name, value in found.items() if value is not None}


def mixed_share(batch: Batch) -> float:
    """Share of responses whose tokens have several weight versions."""
    owner = batch.sequence_of_token[batch.loss_mask]
    pairs = torch.stack([owner, batch.versions[batch.loss_mask]]).unique(dim=1)
    several = pairs[0].bincount() > 1
    return float(several.double().mean())


def aim_metrics(report: ControllerReport, entropy: float) -> dict[str, float]:
    """The controller's target entropy, and whether the entropy is there; empty if it has no target
    (a constant has none, an automatic band has none yet)."""
    if math.isnan(report.low):
        return {}
    low, high = held_interval(report.low, report.high)
    return {
        "controller/low": report.low,
        "controller/high": report.high,
        "controller/in_band": float(low <= entropy <= high),
    }


def groups_without_signal(batch: Batch) -> float:
    """Share of groups whose responses all got the same reward: they have no signal."""
    reward, group = batch.reward[batch.own], batch.group[batch.own]
    flat = [float(reward[group == g].max() == reward[group == g].min()) for g in group.unique()]
    return sum(flat) / len(flat)


def judged_mean(rollout: Rollout) -> float:
    """Mean of the graders' rewards, which training with a majority reward does not use."""
    judged = [v.reward for s, v in zip(rollout.samples, rollout.verdicts) if not s.rerolled]
    return sum(judged) / len(judged)


def grader_metrics(verdicts: Sequence[Verdict], before: str = "") -> dict[str, float]:
    """Means of each grader's rewards and of their parts; names begin with ``before``. A response
    that a grader does not score does not count in its means."""
    metrics: dict[str, float] = {}
    for name in {grade.name: None for verdict in verdicts for grade in verdict.grades}:
        grades = [g for verdict in verdicts for g in verdict.grades if g.name == name]
        rewards = [g.reward for g in grades if g.reward is not None]
        named = f"{before}grader/{name}"
        if rewards:
            metrics[f"{named}/mean"] = statistics.fmean(rewards)
            metrics[f"{named}/right_share"] = statistics.fmean(reward >= 1 for reward in rewards)
        for part in {part: None for grade in grades for part in grade.parts}:
            values = [g.parts[part] for g in grades if part in g.parts]
            metrics[f"{named}/part/{part}"] = statistics.fmean(values)
        metrics[f"{named}/errors"] = float(sum(bool(g.error) for g in grades))
        metrics[f"time/{named}"] = sum(g.seconds for g in grades)
    return metrics


def control_metrics(memory: Memory) -> dict[str, float]:
    """The numbers that entropy controls keep for the next step."""
    return {
        f"control/{kind}/{name}": value
        for kind, kept in memory.items()
        for name, value in kept.items()
        if isinstance(value, (int, float))
    }


def zero_share(batch: Batch, weight: Tensor | None) -> float:
    """Share of response tokens whose weight [T] is 0: tokens without a surrogate, or without KL."""
    return 0.0 if weight is None else float((weight[batch.loss_mask] == 0).double().mean())


def token_mean(batch: Batch, factor: Tensor | None) -> float:
    """Mean over response tokens of a factor [T] of their policy loss; 1 if there is no factor."""
    return 1.0 if factor is None else float(factor[batch.loss_mask].double().mean())


def groups_replaced(rollout: Rollout) -> int:
    """Groups without signal that were discarded and replaced."""
    return sum({s.group: s.replaced for s in rollout.samples}.values())


def time_metrics(
    batch: Batch, seconds: Mapping[str, float], engine_busy_s: float
) -> dict[str, float]:
    """Seconds per phase since the last step's record, and tokens (prompts included) per second.

    Per role too: the trainer works in ``TRAINER_WORKS``; each engine had requests to answer for
    ``engine_busy_s`` on average.
    """
    total = sum(seconds.values())
    trainer = sum(seconds.get(phase, 0.0) for phase in TRAINER_WORKS)
    tokens = batch.tokens.numel()
    metrics = {f"time/{phase}": value for phase, value in seconds.items()}
    return metrics | {
        "time/total": total,
        "time/trainer_busy": trainer,
        "time/trainer_idle": total - trainer,
        "time/trainer_idle_share": (total - trainer) / max(total, 1e-9),
        "time/engines_busy": engine_busy_s,
        "time/engines_idle": total - engine_busy_s,
        "time/engines_idle_share": (total - engine_busy_s) / max(total, 1e-9),
        "tokens/total": float(tokens),
        "tokens/response": float(batch.loss_mask.sum()),
        "tokens/per_s": tokens / max(total, 1e-9),
    }


def evaluation_metrics(result: EvaluationResult) -> dict[str, float]:
    """The metrics of an evaluation."""
    return {
        "evaluation/accuracy": result.accuracy,
        "evaluation/standard_error": result.standard_error,
        "evaluation/length_mean": result.mean_length,
        "evaluation/truncated_share": result.truncated_share,
        "evaluation/judge_errors": float(result.judge_errors),
        **grader_metrics([answer.verdict for answer in result.answers], "evaluation/"),
        **{f"evaluation/pass_at_{k}": value for k, value in result.pass_at_k.items()},
    }


def suite_metrics(name: str, result: EvaluationResult) -> dict[str, float]:
    """The metrics of a suite's evaluation."""
    return {
        key.replace("evaluation/", f"evaluation/{name}/"): value
        for key, value in evaluation_metrics(result).items()
    }
