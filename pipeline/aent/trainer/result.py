"""The results of an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class Sums:
    """Sums of one mini-batch, over its micro-batches and ranks. ``loss`` and ``policy_loss`` are
    sums weighted per token, the others plain sums over its ``tokens`` response tokens."""

    loss: float  # policy_loss - coefficient * weighted mean entropy
    policy_loss: float
    tokens: int
    entropy: float  # nats, over the whole vocabulary
    clamped_entropy: float  # nats, over the clamped set
    kept_mass: float
    clip_fraction: float  # number of clipped tokens
    kl_behaviour: float  # k3 estimate of KL(rollout policy || policy), nats
    kl_reference: float  # k3 estimate, 0 without a reference
    invalid_rows: float  # number of tokens with NaN or +inf among their logits
    # of the gradients with respect to the logits (gradient_share.py), the entropy's at coefficient
    # 1: squared norms and scalar product
    policy_gradient_square: float
    entropy_gradient_square: float
    gradient_product: float


SUMMED = tuple(field.name for field in fields(Sums))  # by ``loss.micro_batch_loss``, in this order


@dataclass
class Tokens:
    """Values per token of one mini-batch, from the forward pass of its update: [T] fp32 on the CPU,
    0 off the mask."""

    logprobs: Tensor  # tempered
    entropies: Tensor  # nats, over the whole vocabulary
    clamped_entropies: Tensor
    clipped: Tensor  # 1 if the clip cut the gradient, else 0


PER_TOKEN = tuple(field.name for field in fields(Tokens))  # likewise


@dataclass
class MinibatchResult(Tokens, Sums):
    """The results of one mini-batch, the same on every rank."""

    grad_norm: float  # before clipping
    lr: float  # of this update
    update_skipped: bool  # the gradient norm was not finite: parameters untouched
    # at which the entropy would not change, from averages over the updates so far; NaN if unknown
    neutral_coefficient: float
    flops: int  # model FLOPs of its forward and backward, all ranks together (``models.flops``)
    # share of its forward and backward in which a rank waited for another pipeline stage, mean over
    # ranks; None if there is one stage (``pipeline_wait``)
    bubble: float | None
