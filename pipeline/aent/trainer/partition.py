"""Sequences over data-parallel ranks and micro-batches, balanced by token count."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence


def partition(
    lengths: Sequence[int], data_parallel: int, micro_batch_tokens: int
) -> list[list[list[int]]]:
    """Spread sequences over micro-batches of at most ``micro_batch_tokens`` tokens.

    Longest first, each into the micro-batch with the fewest tokens (LPT, Graham 1969), with the
    fewest micro-batches a rank in which all of them fit. A sequence longer than the limit gets a
    micro-batch of its own: it exists, so it must be trained on. Deterministic.

    Args:
        lengths: tokens of each sequence, prompt included.
        data_parallel: number of data-parallel ranks.

    Returns:
        For each data-parallel rank the same number of micro-batches, each a list of sequence
        indices in ascending order; a micro-batch is empty where there are too few sequences.
    """
    count = max(1, math.ceil(sum(lengths) / (data_parallel * micro_batch_tokens)))
    while True:
        bins = _longest_first(lengths, data_parallel * count)
        fits = (len(b) <= 1 or sum(lengths[i] for i in b) <= micro_batch_tokens for b in bins)
        if all(fits):
            return [bins[rank::data_parallel] for rank in range(data_parallel)]
        count += 1


def _longest_first(lengths: Sequence[int], count: int) -> list[list[int]]:
    """``count`` bins, filled longest sequence first; fullest bins (by tokens) first."""
    heap: list[tuple[int, int]] = [(0, b) for b in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, b = heapq.heappop(heap)
        bins[b].append(i)
        heapq.heappush(heap, (tokens + lengths[i], b))
    order = sorted(heap, key=lambda entry: (-entry[0], entry[1]))
    return [sorted(bins[b]) for _, b in order]
