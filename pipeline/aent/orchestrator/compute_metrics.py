"""How much of the compute of the trainer's ranks a step used."""

from __future__ import annotations

from collections.abc import Mapping

from aent.orchestrator.records import StepDone


def compute_metrics(done: StepDone, seconds: Mapping[str, float]) -> dict[str, float]:
    """Model FLOPs of the step's updates, per second of the whole step; their share of the ranks'
    peak (MFU, arXiv 2204.02311), in the step and in its ``train`` phase, if the peak is known; the
    pipeline's bubble, if there is a pipeline."""
    results, total = done.results, max(sum(seconds.values()), 1e-9)
    flops = float(sum(r.flops for r in results))
    metrics = {"compute/tflop": flops / 1e12, "compute/tflop_per_s": flops / total / 1e12}
    bubbles = [r.bubble for r in results if r.bubble is not None]
    if bubbles:
        metrics["compute/bubble_share"] = sum(bubbles) / len(bubbles)
    if done.peak_flops is not None:
        metrics["compute/peak_tflop_per_s"] = done.peak_flops / 1e12
        metrics["compute/mfu"] = flops / total / done.peak_flops
        if seconds.get("train"):
            metrics["compute/train_mfu"] = flops / seconds["train"] / done.peak_flops
    return metrics
