"""Distribution of units over data-parallel ranks and micro-batches, balanced by work."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from aent.data.batch import Batch
from aent.models.flops import ForwardFlops


@dataclass
class Unit:
    """Sequences of one group with the same prompt, which is computed once for all of them."""

    sequences: list[int]
    spans: list[tuple[int, int]]  # start and end of each of them in the batch
    prompt: int  # tokens before the first response token
    tokens: int  # the prompt and all responses

    def work(self, pairs_per_token: float) -> float:
        """Cost of computing it, in units of one token's matrix products: its tokens, and the pairs
        of tokens that attend to one another. A layer's window is ignored.

        Args:
            pairs_per_token: number of pairs that cost as much as one token (``ModelFacts``).
        """
        responses = [end - start - self.prompt for start, end in self.spans]
        pairs = self.prompt**2 / 2 + sum(n * self.prompt + n**2 / 2 for n in responses)
        return self.tokens + pairs / pairs_per_token

    def flops(self, of: ForwardFlops) -> int:
        """Model FLOPs of its forward."""
        return of.of_unit(self.prompt, [end - start - self.prompt for start, end in self.spans])


def make_units(batch: Batch, share_prompts: bool, micro_batch_tokens: int) -> list[Unit]:
    """The parts that a micro-batch holds as a whole: one sequence, or all with the same prompt.

    Sequences share a prompt if they belong to one group and have the same tokens before the first
    one under the loss mask. A unit of more than ``micro_batch_tokens`` tokens is split into as few
    as fit (of at least one sequence each), each of which computes the prompt.

    Raises:
        ValueError: if a response token is the first of its sequence: nothing predicts it.
    """
    lengths, group = batch.lengths.tolist(), batch.group.tolist()
    places = batch.cu_seqlens.tolist()
    spans = list(pairwise(places))
    prompts = _prompt_tokens(batch)
    if 0 in prompts:
        raise ValueError("loss_mask: the first token of a sequence is marked as a response token")
    alike: dict[Hashable, list[int]] = {}
    for s, (first, _) in enumerate(spans):
        if share_prompts:
            tokens = batch.tokens[first : first + prompts[s]].numpy().tobytes()
            alike.setdefault((group[s], tokens), []).append(s)
        else:
            alike[s] = [s]
    units = []
    for sequences in alike.values():
        prompt_tokens = prompts[sequences[0]]
        responses = [lengths[s] - prompt_tokens for s in sequences]
        room = max(1, micro_batch_tokens - prompt_tokens)
        for part in partition(responses, 1, room)[0]:
            if part:
                size = prompt_tokens + sum(responses[i] for i in part)
                chosen = [sequences[i] for i in part]
                units.append(Unit(chosen, [spans[s] for s in chosen], prompt_tokens, size))
    return units


def _prompt_tokens(batch: Batch) -> list[int]:
    """For each sequence, the number of tokens before the first one under the loss mask; all its
    tokens if there is none."""
    starts, total = batch.cu_seqlens[:-1], batch.tokens.numel()
    place = torch.where(batch.loss_mask, torch.arange(total), total)
    first = torch.full((batch.num_sequences,), total).scatter_reduce(
        0, batch.sequence_of_token, place, "amin"
    )
    return torch.minimum(first - starts, batch.lengths).tolist()


def partition(
    lengths: Sequence[int],
    data_parallel: int,
    micro_batch_tokens: int,
    work: Sequence[float] | None = None,
) -> list[list[list[int]]]:
    """Spread units over micro-batches of at most ``micro_batch_tokens`` tokens.

    Units with most work come first, each into the micro-batch with least work (LPT, Graham 1969),
    with the fewest micro-batches per rank in which all fit. A unit longer than the limit gets its
    own micro-batch, since it must be trained on. Deterministic.

    Args:
        lengths: tokens of each unit, prompt included.
        data_parallel: number of data-parallel ranks.
        work: of each unit (``Unit.work``); its tokens if None.

    Returns:
        The same number of micro-batches for each data-parallel rank, each a list of unit indices in
        ascending order; a micro-batch is empty if there are too few units.
    """
    work = lengths if work is None else work
    order = sorted(range(len(work)), key=lambda i: (-work[i], i))
    count = max(1, math.ceil(sum(lengths) / (data_parallel * micro_batch_tokens)))
    while True:
        bins = _least_first(order, work, data_parallel * count)
        fits = (len(b) <= 1 or sum(lengths[i] for i in b) <= micro_batch_tokens for b in bins)
        if all(fits):
            return [bins[rank::data_parallel] for rank in range(data_parallel)]
        count += 1


def _least_first(order: Sequence[int], work: Sequence[float], count: int) -> list[list[int]]:
    """``count`` bins: each unit, in this order, goes to the bin with the least work; bins with the
    most work come first."""
    heap: list[tuple[float, int]] = [(0, b) for b in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        least, b = heapq.heappop(heap)
        bins[b].append(i)
        heapq.heappush(heap, (least + work[i], b))
    return [sorted(bins[b]) for _, b in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]
