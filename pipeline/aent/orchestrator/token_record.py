"""What the forward passes of a step computed for every response token, on rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from aent.algorithm.aggregation import mini_batch_sequences
from aent.data.batch import Batch
from aent.data.rollout import Rollout
from aent.data.sample import Sample
from aent.models.pieces import Pieces
from aent.orchestrator.tables import shortened
from aent.tracking import heatmap
from aent.trainer.result import MinibatchResult

MAX_TOKENS = 10_000  # on a page: some 400 kB
FORKING = 0.2  # share of tokens, those with the highest entropy (arXiv 2506.01939)


@dataclass(frozen=True)
class TokenRecord:
    """N response tokens, in the batch's order; on the CPU."""

    token: Tensor  # [N] int64
    sequence: Tensor  # [N] int64: which response
    group: Tensor  # [N] int64: which prompt
    position: Tensor  # [N] int64: in its response, from 0
    entropy: Tensor  # [N] fp64, nats, of the controller's measure
    logprob: Tensor  # [N] fp64, tempered
    advantage: Tensor  # [N] fp64, as entropy controls left it
    clipped: Tensor  # the clip cut its gradient

    @property
    def covariance(self) -> Tensor:
        """[N] fp64: (A - mean A) (log pi - mean log pi), means over the step's tokens: a token's
        contribution to the fall of the entropy (arXiv 2505.22617)."""
        return (self.advantage - self.advantage.mean()) * (self.logprob - self.logprob.mean())

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response."""
        return torch.bincount(self.sequence).tolist()

    def response_means(self) -> list[float]:
        """Mean entropy of each response, nats."""
        sums = torch.zeros(len(self.lengths), dtype=torch.float64)
        sums = sums.index_add(0, self.sequence, self.entropy)
        return (sums / torch.tensor(self.lengths)).tolist()

    def forking_from(self, share: float) -> float:
        """The lowest entropy among the ``share`` of tokens with the highest entropy, nats."""
        count = max(1, int(share * self.entropy.numel()))
        return float(self.entropy.topk(count).values[-1])


def token_record(
    batch: Batch,
    advantages: Tensor,
    results: Sequence[MinibatchResult],
    measured: Literal["entropy", "clamped_entropy"],
) -> TokenRecord:
    """Collect the results of the step's mini-batches.

    Args:
        advantages: [T]. measured: the entropy that the controller gets (``Recipe.measured``).
    """
    name = "entropies" if measured == "entropy" else "clamped_entropies"
    mask = batch.loss_mask
    flat = {key: torch.zeros(mask.numel()) for key in ("logprobs", name, "clipped")}
    for sequences, result in zip(mini_batch_sequences(batch, len(results)), results):
        index = batch.places(sequences)
        for key, values in flat.items():
            values[index] = getattr(result, key)
    sequence = batch.sequence_of_token
    starts = (mask.cumsum(0) - mask.long())[batch.cu_seqlens[:-1]]  # tokens of earlier responses
    return TokenRecord(
        token=batch.tokens[mask],
        sequence=sequence[mask],
        group=batch.group[sequence[mask]],
        position=torch.arange(int(mask.sum())) - starts[sequence[mask]],
        entropy=flat[name][mask].double(),
        logprob=flat["logprobs"][mask].double(),
        advantage=advantages[mask].double(),
        clipped=flat["clipped"][mask] != 0,
    )


def shown(
    record: TokenRecord, rollout: Rollout, pieces: Pieces, title: str, measure: str
) -> heatmap.Step:
    """What a page shows of the step: whole groups with at most ``MAX_TOKENS`` tokens together, but
    at least one group."""
    samples = rollout.samples
    lengths = record.lengths[: _whole_groups(samples, MAX_TOKENS)]
    columns = (
        record.token, record.entropy, record.logprob.exp(), record.advantage, record.covariance,
        record.clipped,
    )  # fmt: skip
    rows = zip(*(column[: sum(lengths)].split(lengths) for column in columns))
    responses = []
    for sample, prompt, row in zip(samples, rollout.prompts, rows):
        values = [part.tolist() for part in row]
        responses.append(
            heatmap.Response(
                shortened(prompt), sample.item, sample.group, sample.reward,
                pieces.of(values[0]), *values,
            )
        )  # fmt: skip
    return heatmap.Step(
        title,
        measure,
        mean=float(record.entropy.mean()),
        forking_from=record.forking_from(FORKING),
        forking_share=FORKING,
        left_out=len(samples) - len(responses),
        responses=responses,
    )


def _whole_groups(samples: Sequence[Sample], most: int) -> int:
    """How many of the first responses form whole groups with at most ``most`` tokens together; at
    least one group."""
    count = tokens = 0
    for _, members in groupby(samples, lambda sample: sample.group):
        lengths = [len(sample.response_ids) for sample in members]
        tokens += sum(lengths)
        if count and tokens > most:
            break
        count += len(lengths)
    return count
