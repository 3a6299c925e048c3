"""Metrics that a step's record computes from its samples and weights."""

import math

import torch

from aent.data.batch import Batch
from aent.data.rollout import Grade, Rollout, Verdict
from aent.data.sample import Sample
from aent.entropy.controllers import ControllerReport
from aent.orchestrator.compute_metrics import compute_metrics
from aent.orchestrator.records import (
    StepDone,
    aim_metrics,
    control_metrics,
    grader_metrics,
    groups_replaced,
    groups_without_signal,
    judged_mean,
    mixed_share,
    time_metrics,
    token_mean,
    zero_share,
)


def samples() -> list[Sample]:
    """Two groups of two responses; three groups were discarded before the first one."""
    return [
        Sample([1], [2] * n, [0.0] * n, [0] * n, "stop", group, 0, replaced=3 * (1 - group))
        for group, n in ((0, 1), (0, 2), (1, 1), (1, 4))
    ]


def test_groups_replaced_counts_groups_and_not_samples():
    assert groups_replaced(Rollout(samples(), [], [], [])) == 3


def test_zero_share_is_over_response_tokens():
    batch = Batch.from_samples(samples(), 1.0)
    assert zero_share(batch, None) == 0
    weight = torch.where(batch.loss_mask, 1.0, 0.0)
    assert zero_share(batch, weight) == 0
    weight[batch.loss_mask.nonzero()[:2, 0]] = 0
    assert zero_share(batch, weight) == 2 / 8


def test_mixed_share_counts_responses_of_several_versions():
    several = samples()
    assert mixed_share(Batch.from_samples(several, 1.0)) == 0
    several[1].versions, several[3].versions = [2, 3], [3, 3, 3, 3]  # of 2 and of 4 tokens
    assert mixed_share(Batch.from_samples(several, 1.0)) == 1 / 4


def test_token_mean_is_over_response_tokens():
    batch = Batch.from_samples(samples(), 1.0)
    assert token_mean(batch, None) == 1
    factor = torch.full_like(batch.behaviour_logprobs, 9.0)
    factor[batch.loss_mask] = torch.arange(8) / 4
    assert token_mean(batch, factor) == 7 / 8


def test_rerolled_responses_are_in_no_mean_of_the_policy():
    chosen = [
        Sample([1], [2], [0.0], [0], "stop", 0, 0, reward=1.0, rerolled=again)
        for again in (False, False, True)
    ]
    verdicts = [Verdict(0.0), Verdict(0.5), Verdict(1.0)]
    assert judged_mean(Rollout(chosen, [""] * 3, [""] * 3, verdicts)) == 0.25
    chosen[2].reward = 0.0
    assert groups_without_signal(Batch.from_samples(chosen, 1.0)) == 1


def test_each_grader_and_each_part_has_metrics_of_its_own():
    verdicts = [
        Verdict(1.5, "", (Grade("right", 1.0), Grade("form", 0.5, {"short": 0.5}, seconds=2.0))),
        Verdict(0.0, "timeout [form]", (Grade("right", 0.0), Grade("form", 0.0, error="timeout"))),
        Verdict(1.0, "", (Grade("right", 1.0), Grade("form", None))),
        Verdict(1.0),  # an earlier version's
    ]
    assert grader_metrics(verdicts) == {
        "grader/right/mean": 2 / 3,
        "grader/right/right_share": 2 / 3,
        "grader/right/errors": 0,
        "time/grader/right": 0,
        "grader/form/mean": 0.25,
        "grader/form/right_share": 0,
        "grader/form/part/short": 0.5,
        "grader/form/errors": 1,
        "time/grader/form": 2.0,
    }
    assert "evaluation/grader/right/mean" in grader_metrics(verdicts, "evaluation/")


def test_numbers_that_controls_keep_are_metrics():
    memory = {"probability_push": {"push": 0.5, "integral": -2}, "rollout_budget": {"rewards": {}}}
    assert control_metrics(memory) == {
        "control/probability_push/push": 0.5,
        "control/probability_push/integral": -2,
    }


def test_time_is_told_per_phase_and_per_role():
    seconds = {"sample": 5.0, "train": 3.0, "sync": 1.0, "record": 1.0}
    metrics = time_metrics(Batch.from_samples(samples(), 1.0), seconds, engine_busy_s=4.5)
    assert {k: v for k, v in metrics.items() if k.startswith("time/")} == {
        "time/sample": 5.0,
        "time/train": 3.0,
        "time/sync": 1.0,
        "time/record": 1.0,
        "time/total": 10.0,
        "time/trainer_busy": 4.0,
        "time/trainer_idle": 6.0,
        "time/trainer_idle_share": 0.6,
        "time/engines_busy": 4.5,
        "time/engines_idle": 5.5,
        "time/engines_idle_share": 0.55,
    }


def test_compute_is_told_of_the_step_and_of_its_training():
    class Result:
        def __init__(self, flops: int, bubble: float | None) -> None:
            self.flops, self.bubble = flops, bubble

    def told(peak: float | None, *results: Result) -> dict[str, float]:
        done = StepDone(0, None, None, None, results, None, {}, peak)
        return compute_metrics(done, {"sample": 5.0, "train": 3.0})

    assert told(None, Result(3 * 10**12, None), Result(10**12, None)) == {
        "compute/tflop": 4.0,
        "compute/tflop_per_s": 0.5,
    }
    assert told(2e12, Result(3 * 10**12, 0.1), Result(10**12, 0.3)) == {
        "compute/tflop": 4.0,
        "compute/tflop_per_s": 0.5,
        "compute/bubble_share": 0.2,
        "compute/peak_tflop_per_s": 2.0,
        "compute/mfu": 0.25,
        "compute/train_mfu": 4 / 3 / 2,
    }


def test_a_step_says_whether_its_entropy_is_where_the_controller_wants_it():
    def report(low: float, high: float) -> ControllerReport:
        return ControllerReport(0.1, 0.1, low, high, 0.0, 0.0, "", 0, False)

    assert aim_metrics(report(math.nan, math.nan), 0.5) == {}
    assert aim_metrics(report(0.4, 0.6), 0.5) == {
        "controller/low": 0.4, "controller/high": 0.6, "controller/in_band": 1.0,
    }  # fmt: skip
    assert aim_metrics(report(0.4, 0.6), 0.61)["controller/in_band"] == 0
    assert aim_metrics(report(0.5, 0.5), 0.61)["controller/in_band"] == 1  # a target
    assert aim_metrics(report(0.5, 0.5), 0.81)["controller/in_band"] == 0
