"""Batch: the data that everything passes around.

Token ids in, token ids out; text is never re-tokenised. A Batch is flat: sequences stand one after
the other, ``cu_seqlens`` says where each begins, and every per-token field has the length of
``tokens``. Position i of a per-token field speaks of token i itself (its log-prob is that of
``tokens[i]`` given what precedes it in its sequence).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

from aent.data.sample import Sample


@dataclass
class Batch:
    """S sequences of T tokens in all. Optional fields are None until something computes them."""

    tokens: Tensor  # [T] int64
    cu_seqlens: Tensor  # [S + 1] int64, from 0 to T
    loss_mask: Tensor  # [T] bool: response tokens that the policy wrote
    behaviour_logprobs: Tensor  # [T] fp32, 0 off the mask
    versions: Tensor  # [T] int64, -1 off the mask
    group: Tensor  # [S] int64
    reward: Tensor  # [S] fp32
    truncated: Tensor  # [S] bool: stopped by length
    item: Tensor | None = None  # [S] int64: index of the question in its task
    # [S] bool: sampled at another temperature than the policy's; no part of its group's baseline
    rerolled: Tensor | None = None
    penalty: Tensor | None = None  # [S] fp32: added to the reward before advantages
    advantages: Tensor | None = None  # [T] fp32, 0 off the mask
    old_logprobs: Tensor | None = None  # [T] fp32: the trainer's, before the step's first update
    reference_logprobs: Tensor | None = None  # [T] fp32: the frozen reference's
    old_entropies: Tensor | None = None  # [T] fp32, nats, over the whole vocabulary: likewise old
    old_nucleus_entropies: Tensor | None = None  # [T] fp32, nats, where nucleus_anchor asks
    # [T] fp32: factor on the surrogate, default 1 (engine-versus-trainer weights, entropy controls)
    importance: Tensor | None = None
    kl_weight: Tensor | None = None  # [T] fp32: of the KL to the reference, default kl_coefficient
    # [T] fp32, nats: between them a token's entropy must lie for it to have a policy loss
    entropy_low: Tensor | None = None
    entropy_high: Tensor | None = None
    old_kl_weight: Tensor | None = None  # [T] fp32: of abs(log-prob - old log-prob) in the loss
    ratio_weight: Tensor | None = None  # [T] fp32: of minus the ratio in the loss
    # [T] fp32: of the nucleus entropy in the loss; 0 for tokens that need none
    nucleus_weight: Tensor | None = None
    entropy_factor: Tensor | None = None  # [T] fp32: on the entropy bonus, default 1
    # [T] fp32: what is taken from the bonus per nat below or above these bounds (nats)
    smoothing_weight: Tensor | None = None
    smoothing_low: Tensor | None = None
    smoothing_high: Tensor | None = None
    # weight of each token in the two means of the loss; their denominators are those of one whole
    # mini-batch (all its micro-batches and ranks), so that a loss is a plain weighted sum wherever
    # it is computed
    policy_weight: Tensor | None = None  # [T] fp32
    entropy_weight: Tensor | None = None  # [T] fp32

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """[S] int64: tokens per sequence, prompt included."""
        return self.cu_seqlens.diff()

    @property
    def sequence_of_token(self) -> Tensor:
        """[T] int64: the sequence that each token belongs to."""
        return torch.repeat_interleave(torch.arange(self.num_sequences), self.lengths)

    @property
    def response_lengths(self) -> Tensor:
        """[S] int64: tokens under the loss mask, per sequence."""
        return self.sum_by_response(torch.ones_like(self.tokens))

    def sum_by_response(self, values: Tensor) -> Tensor:
        """[S]: the sum of ``values`` [T] over each sequence's tokens under the loss mask."""
        sums = torch.zeros(self.num_sequences, dtype=values.dtype)
        return sums.index_add(0, self.sequence_of_token, values * self.loss_mask)

    @property
    def own(self) -> Tensor:
        """[S] bool: responses of the policy at its own temperature."""
        return torch.ones_like(self.truncated) if self.rerolled is None else ~self.rerolled

    @property
    def own_tokens(self) -> Tensor:
        """[T] bool: the tokens of those responses."""
        return self.loss_mask & self.own[self.sequence_of_token]

    @property
    def logprob_gap(self) -> float:
        """Mean |old - behaviour| log-prob over the policy's own response tokens: trainer against
        engine, nats."""
        assert self.old_logprobs is not None, "the gap needs the trainer's log-probs"
        return float((self.old_logprobs - self.behaviour_logprobs).abs()[self.own_tokens].mean())

    def select(self, sequences: Sequence[int]) -> Batch:
        """The same fields for these sequences, in this order."""
        index = torch.as_tensor(sequences, dtype=torch.int64)
        starts, lengths = self.cu_seqlens[:-1][index].tolist(), self.lengths[index]
        parts = [torch.arange(s, s + n) for s, n in zip(starts, lengths.tolist())]
        tokens = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        chosen = {}
        for name, value in self.named_tensors():
            if name != "cu_seqlens":
                chosen[name] = value[index if name in PER_SEQUENCE else tokens]
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        return replace(self, cu_seqlens=cu_seqlens, **chosen)

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """(field, tensor) of every field that is there, in a fixed order."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [(name, value) for name, value in pairs if value is not None]

    @staticmethod
    def from_samples(samples: Iterable[Sample]) -> Batch:
        """Lay samples out flat, in their order.

        Raises ValueError if a sample's per-token lists differ in length or it has no response.
        """
        samples = list(samples)
        for i, s in enumerate(samples):
            if not len(s.response_ids) == len(s.logprobs) == len(s.versions) > 0:
                raise ValueError(
                    f"sample {i} (group {s.group}): {len(s.response_ids)} response tokens, "
                    f"{len(s.logprobs)} log-probs and {len(s.versions)} weight versions"
                )

        def flat(before: float, attribute: str, dtype: torch.dtype) -> Tensor:
            rows = [[before] * len(s.prompt_ids) + list(getattr(s, attribute)) for s in samples]
            return torch.tensor([x for row in rows for x in row], dtype=dtype)

        lengths = torch.tensor([len(s.prompt_ids) + len(s.response_ids) for s in samples])
        mask = [[False] * len(s.prompt_ids) + [True] * len(s.response_ids) for s in samples]
        return Batch(
            tokens=torch.tensor([t for s in samples for t in s.prompt_ids + s.response_ids]),
            cu_seqlens=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
            loss_mask=torch.tensor([m for row in mask for m in row]),
            behaviour_logprobs=flat(0.0, "logprobs", torch.float32),
            versions=flat(-1, "versions", torch.int64),
            group=torch.tensor([s.group for s in samples]),
            reward=torch.tensor([s.reward for s in samples], dtype=torch.float32),
            truncated=torch.tensor([s.finish_reason == "length" for s in samples]),
            item=torch.tensor([s.item for s in samples]),
            rerolled=torch.tensor([s.rerolled for s in samples]),
        )


PER_SEQUENCE = ("group", "reward", "truncated", "item", "rerolled", "penalty")
_DTYPES = (torch.int64, torch.float32, torch.bool)


def broadcast_batch(batch: Batch | None, group: dist.ProcessGroup | None = None) -> Batch:
    """Send rank 0's batch to every rank of ``group`` as tensors (CPU, gloo).

    Every other rank passes None. One header of fixed size, then one broadcast per field.
    """
    names = [f.name for f in fields(Batch)]
    header = torch.full((len(names), 2), -1, dtype=torch.int64)  # length and dtype of each field
    if batch is not None:
        for name, value in batch.named_tensors():
            header[names.index(name)] = torch.tensor([value.numel(), _DTYPES.index(value.dtype)])
    dist.broadcast(header, 0, group=group)
    received = {}
    for name, (length, dtype) in zip(names, header.tolist()):
        if length < 0:
            continue
        value = torch.empty(length, dtype=_DTYPES[dtype])
        if batch is not None:
            value = getattr(batch, name)
        dist.broadcast(value, 0, group=group)
        received[name] = value
    return Batch(**received)
