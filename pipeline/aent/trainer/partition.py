"""Units of sequences over data-parallel ranks and micro-batches, balanced by token count."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from aent.data.batch import Batch


@dataclass
class Unit:
    """Sequences of one group that begin with the same prompt, which is computed once for them."""

    sequences: list[int]
    prompt: int  # tokens before the first response token
    tokens: int  # the prompt and all responses


def make_units(batch: Batch, share_prompts: bool, micro_batch_tokens: int) -> list[Unit]:
    """What one micro-batch holds as a whole: one sequence, or, sharing, those with one prompt.

    Sequences share a prompt if they are of one group and their tokens before the first one under
    the loss mask are the same. A unit of more than ``micro_batch_tokens`` tokens is split into as
    few as fit (of at least one sequence each), each of which computes the prompt.
    """
    lengths = batch.lengths.tolist()
    alike: dict[Hashable, list[int]] = {}
    prompts = []
    for s, (tokens, mask) in enumerate(
        zip(batch.tokens.split(lengths), batch.loss_mask.split(lengths))
    ):
        prompts.append(int((mask.cumsum(0) == 0).sum()))
        prompt = (int(batch.group[s]), *tokens[: prompts[s]].tolist())
        alike.setdefault(prompt if share_prompts else s, []).append(s)
    units = []
    for sequences in alike.values():
        prompt_tokens = prompts[sequences[0]]
        responses = [lengths[s] - prompt_tokens for s in sequences]
        room = max(1, micro_batch_tokens - prompt_tokens)
        for part in partition(responses, 1, room)[0]:
            if part:
                size = prompt_tokens + sum(responses[i] for i in part)
                units.append(Unit([sequences[i] for i in part], prompt_tokens, size))
    return units


def partition(
    lengths: Sequence[int], data_parallel: int, micro_batch_tokens: int
) -> list[list[list[int]]]:
    """Spread units over micro-batches of at most ``micro_batch_tokens`` tokens.

    Longest first, each into the micro-batch with the fewest tokens (LPT, Graham 1969), with the
    fewest micro-batches a rank in which all of them fit. A unit longer than the limit gets a
    micro-batch of its own: it exists, so it must be trained on. Deterministic.

    Args:
        lengths: tokens of each unit, prompt included.
        data_parallel: number of data-parallel ranks.

    Returns:
        For each data-parallel rank the same number of micro-batches, each a list of unit indices
        in ascending order; a micro-batch is empty where there are too few units.
    """
    count = max(1, math.ceil(sum(lengths) / (data_parallel * micro_batch_tokens)))
    while True:
        bins = _longest_first(lengths, data_parallel * count)
        fits = (len(b) <= 1 or sum(lengths[i] for i in b) <= micro_batch_tokens for b in bins)
        if all(fits):
            return [bins[rank::data_parallel] for rank in range(data_parallel)]
        count += 1


def _longest_first(lengths: Sequence[int], count: int) -> list[list[int]]:
    """``count`` bins, filled longest unit first; fullest bins (by tokens) first."""
    heap: list[tuple[int, int]] = [(0, b) for b in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, b = heapq.heappop(heap)
        bins[b].append(i)
        heapq.heappush(heap, (tokens + lengths[i], b))
    order = sorted(heap, key=lambda entry: (-entry[0], entry[1]))
    return [sorted(bins[b]) for _, b in order]
