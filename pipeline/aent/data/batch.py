"""Batch: the facts of one step's samples; passed to everything, changed by nothing.

Token ids in, token ids out; text is never re-tokenized. A Batch is flat: sequences follow one
another, ``lengths`` has the length of each, and every per-token field has the length of
``tokens``. Position i of such a field belongs to token i itself (its log-prob is that of
``tokens[i]`` given the tokens before it in its sequence).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aent.data.flat import Flat, PerBatch, PerSequence, PerToken, kinds
from aent.data.sample import Sample


@dataclass(frozen=True)
class Batch(Flat):
    """S sequences of T tokens in all. Per-token values derived from the fields are cached."""

    tokens: PerToken  # [T] int64
    loss_mask: PerToken  # [T] bool: response tokens that the policy wrote
    behaviour_logprobs: PerToken  # [T] fp32, 0 off the mask: of the policy that sampled each token
    versions: PerToken  # [T] int64, -1 off the mask
    lengths: PerSequence  # [S] int64: tokens of each sequence, prompt included
    group: PerSequence  # [S] int64
    reward: PerSequence  # [S] fp32
    truncated: PerSequence  # [S] bool: stopped by length
    item: PerSequence  # [S] int64: index of the question in its task
    # [S] bool: sampled at another temperature than the policy's; not part of the group's baseline
    rerolled: PerSequence
    temperature: PerBatch  # of the policy for which log-probs, entropies and the loss are computed

    @property
    def num_sequences(self) -> int:
        return self.lengths.numel()

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """[S + 1] int64, from 0 to T: where each sequence begins, then where the last one ends."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))

    @cached_property
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
        """[S] bool: responses sampled by the policy at its own temperature."""
        return ~self.rerolled

    @cached_property
    def own_tokens(self) -> Tensor:
        """[T] bool: the tokens of those responses."""
        return self.loss_mask & self.own[self.sequence_of_token]

    def logprob_gap(self, logprobs: Tensor, chosen: Tensor) -> float | None:
        """Mean absolute difference, in nats, between trainer's and engine's log-probs of those
        chosen tokens that the policy sampled at its own temperature; None if there are none.

        logprobs: [T] fp32, the trainer's, before the step's first update. chosen: [T] bool.
        """
        gaps = (logprobs - self.behaviour_logprobs).abs()[self.own_tokens & chosen]
        return float(gaps.mean()) if len(gaps) else None

    def places(self, sequences: Sequence[int]) -> Tensor:
        """[n] int64: positions of the tokens of these sequences, in this order."""
        starts, lengths = self.cu_seqlens.tolist(), self.lengths.tolist()
        parts = [torch.arange(starts[s], starts[s] + lengths[s]) for s in sequences]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def select(self, sequences: Sequence[int]) -> Batch:
        """The same fields for these sequences, in this order."""
        tokens = self.places(sequences)
        chosen = torch.as_tensor(sequences, dtype=torch.int64)
        return self.mapped(
            token=lambda value: value[tokens],
            sequence=lambda value: value[chosen],
            batch=lambda value: value,
        )

    @staticmethod
    def from_samples(samples: Iterable[Sample], temperature: float) -> Batch:
        """Lay out samples in their order. temperature: the policy's in this step.

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

        mask = [[False] * len(s.prompt_ids) + [True] * len(s.response_ids) for s in samples]
        return Batch(
            tokens=torch.tensor([t for s in samples for t in s.prompt_ids + s.response_ids]),
            loss_mask=torch.tensor([m for row in mask for m in row]),
            behaviour_logprobs=flat(0.0, "logprobs", torch.float32),
            versions=flat(-1, "versions", torch.int64),
            lengths=torch.tensor([len(s.prompt_ids) + len(s.response_ids) for s in samples]),
            group=torch.tensor([s.group for s in samples]),
            reward=torch.tensor([s.reward for s in samples], dtype=torch.float32),
            truncated=torch.tensor([s.finish_reason == "length" for s in samples]),
            item=torch.tensor([s.item for s in samples]),
            rerolled=torch.tensor([s.rerolled for s in samples]),
            temperature=temperature,
        )


_DTYPES = (torch.int64, torch.float32, torch.bool, torch.float64)


def broadcast_batch(batch: Batch | None, group: dist.ProcessGroup | None = None) -> Batch:
    """Send rank 0's batch to every rank of ``group`` as tensors (CPU, gloo).

    All other ranks pass None. It sends one header of fixed size, then one broadcast per field; a
    number for the whole batch is sent as one float64.
    """
    of = kinds(Batch)
    header = torch.zeros((len(of), 2), dtype=torch.int64)  # length and dtype of each field
    values = []
    if batch is not None:
        for name, kind in of.items():
            value = getattr(batch, name)
            values.append(torch.tensor([value], dtype=torch.float64) if kind == "batch" else value)
        header = torch.tensor([[v.numel(), _DTYPES.index(v.dtype)] for v in values])
    dist.broadcast(header, 0, group=group)
    if batch is None:
        values = [torch.empty(length, dtype=_DTYPES[dtype]) for length, dtype in header.tolist()]
    for value in values:
        dist.broadcast(value, 0, group=group)
    received: dict[str, Any] = dict(zip(of, values))
    for name in (name for name, kind in of.items() if kind == "batch"):
        received[name] = float(received[name])
    return Batch(**received)
