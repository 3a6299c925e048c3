"""Units of sequences over data-parallel ranks and micro-batches, balanced by work."""

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
    """Sequences of one group that begin with the same prompt, which is computed once for them."""

    sequences: list[int]
    spans: list[tuple[int, int]]  # where each of them begins and ends in the batch
    prompt: int  # tokens before the first response token
    tokens: int  # the prompt and all responses

    def work(self, pairs_per_token: float) -> float:
        """What computing it costs, in tokens' worth of matrix products: its tokens, and the pairs
        of tokens that attend to one another. A layer's window is not counted.

        Args:
            pairs_per_token: how many pairs cost as much as one token (``ModelFacts``).
        """
        responses = [end - start - self.prompt for start, end in self.spans]
        pairs = self.prompt**2 / 2 + sum(n * self.prompt + n**2 / 2 for n in responses)
        return self.tokens + pairs / pairs_per_token

    def flops(self, of: ForwardFlops) -> int:
        """Model FLOPs of its forward."""
        return of.of_unit(self.prompt, [end - start - self.prompt for start, end in self.spans])


def make_units(batch: Batch, share_prompts: bool, micro_batch_tokens: int) -> list[Unit]:
    """What one micro-batch holds as a whole: one sequence, or, sharing, those with one prompt.

    Sequences share a prompt if they are of one group and their tokens before the first one under
    the loss mask are the same. A unit of more than ``micro_batch_tokens`` tokens is split into as
    few as fit (of at least one sequence each), each of which computes the prompt.

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
    """Of each sequence, its tokens before the first under the loss mask; all of a sequence that has
    none there."""
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

    Most work first, each into the micro-batch with the least (LPT, Graham 1969), with the fewest
    micro-batches a rank in which all of them fit. A unit longer than the limit gets a micro-batch
    of its own: it exists, so it must be trained on. Deterministic.

    Args:
        lengths: tokens of each unit, prompt included.
        data_parallel: number of data-parallel ranks.
        work: of each unit (``Unit.work``); its tokens if None.

    Returns:
        For each data-parallel rank the same number of micro-batches, each a list of unit indices
        in ascending order; a micro-batch is empty where there are too few units.
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
    """``count`` bins, the units put in in this order, each into the bin with the least work; bins
    with the most of it first."""
    heap: list[tuple[float, int]] = [(0, b) for b in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        least, b = heapq.heappop(heap)
        bins[b].append(i)
        heapq.heappush(heap, (least + work[i], b))
    return [sorted(bins[b]) for _, b in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]
