"""The train-inference mismatch: mean absolute difference between engine's and trainer's log-probs
of the same tokens under the same weights, in nats."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from aent.data.batch import Batch

# steps have different tokens: only a difference larger than this is a jump
JUMP, NOISE = 3.0, 1e-3  # factor; nats


@dataclass(frozen=True)
class Gaps:
    """The mismatch of one step, nats; None: there are no such tokens."""

    same: float | None  # tokens that engines sampled with the trainer's present weights
    stale: float | None  # with older weights: includes the policy's change since then

    @classmethod
    def of(cls, batch: Batch, logprobs: Tensor, step: int) -> Gaps:
        """logprobs: [T] fp32, the trainer's, before the update of ``step``."""
        same = batch.versions == step
        return cls(batch.logprob_gap(logprobs, same), batch.logprob_gap(logprobs, ~same))


def check_gap(step: int, gap: float | None, bound: float, before: float | None) -> None:
    """Compare a step's mismatch with the recipe's bound and, if ``before`` is given (for the first
    fresh samples after a resume), with the one before the stop.

    None: nothing was sampled with the present weights; the probe has compared them.

    Raises RuntimeError if the mismatch is above the bound, or far above the one before.
    """
    if gap is None:
        return
    if not gap <= bound:  # NaN must stop it too
        raise RuntimeError(
            f"step {step}: engine and trainer log-probs differ by {gap:.4g} on average, more than "
            f"rollout.max_logprob_gap={bound:g}: the engine does not sample from the policy that "
            "is being trained"
        )
    if before is not None and gap > JUMP * before + NOISE:
        raise RuntimeError(
            f"step {step}, the first samples after the resume: engine and trainer log-probs differ "
            f"by {gap:.4g} on average, before the stop by {before:.4g}: what was restored is not "
            "what was trained"
        )
