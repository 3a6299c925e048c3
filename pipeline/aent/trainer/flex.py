"""Attention by torch's flex_attention: one kernel for all sequences, masks and softcaps of a
micro-batch, which skips blocks of tokens that do not see one another.

On a GPU it is compiled (not run here; ``make gpu-check`` runs it). On a CPU it has no backward
(torch 2.13), and its forward is not compiled here and holds all scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from aent.data.flat import to_device
from aent.trainer.segments import Run, Scoring, Visible, columns

BLOCK = 128  # queries, and keys, per block


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scoring: Scoring) -> Tensor:
    """As ``attention.attend_by_pieces``."""
    window = scoring.window
    if window not in visible.blocks:
        visible.blocks[window] = block_mask(visible.queries, visible.keys, window, visible.device)
    out = _compiled(query.device.type)(
        *(x.transpose(0, 1)[None] for x in (query, key, value)),
        score_mod=None if scoring.softcap is None else _capped(scoring.softcap),
        block_mask=visible.blocks[window],
        scale=scoring.scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out[0].transpose(0, 1)


@cache
def _compiled(device: str) -> Callable[..., Any]:
    function: Callable[..., Any] = flex_attention
    return torch.compile(function, dynamic=True) if device == "cuda" else function


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """The same function for each softcap, so that it is compiled once."""

    def capped(
        score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor
    ) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def block_mask(
    queries: list[Run], keys: list[Run], window: int | None, device: torch.device
) -> BlockMask:
    """Which blocks of queries and keys see one another, computed on the host from the runs."""
    some, whole = _blocks(queries, keys, window)
    tensors = [*_listed(some & ~whole), *_listed(whole)]
    count, partly, count_whole, wholly = (to_device(x[None, None], device) for x in tensors)
    of_query, of_key = (to_device(_of_tokens(runs), device) for runs in (queries, keys))

    def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        unit, response, position = of_query[0, query], of_query[1, query], of_query[2, query]
        other, before = of_key[1, key], position - of_key[2, key]
        allowed = (unit == of_key[0, key]) & ((other == 0) | (other == response)) & (before >= 0)
        return allowed if window is None else allowed & (before < window)

    return BlockMask.from_kv_blocks(
        count,
        partly,
        count_whole,
        wholly,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(of_query.shape[1], of_key.shape[1]),
    )


def _of_tokens(runs: list[Run]) -> Tensor:
    """[3, T] int32: unit, response and position of each token."""
    tokens, first, response, unit = columns(runs)
    run = torch.repeat_interleave(torch.arange(len(runs)), tokens)
    place = torch.arange(len(run)) - (tokens.cumsum(0) - tokens)[run]
    return torch.stack([unit[run], response[run], first[run] + place]).int()


def _blocks(queries: list[Run], keys: list[Run], window: int | None) -> tuple[Tensor, Tensor]:
    """[query blocks, key blocks] bool: where some query sees some key; where all see all."""
    lengths = [sum(run.tokens for run in runs) for runs in (queries, keys)]
    some = torch.zeros([-(-length // BLOCK) for length in lengths], dtype=torch.bool)
    whole = torch.zeros_like(some)
    placed = _placed(keys)
    for begin, query in [pair for pairs in _placed(queries).values() for pair in pairs]:
        segments = {(query.unit, 0), (query.unit, query.response)}
        for row in range(begin // BLOCK, (begin + query.tokens - 1) // BLOCK + 1):
            top, bottom = max(begin, row * BLOCK), min(begin + query.tokens, (row + 1) * BLOCK)
            first, end = (query.position + place - begin for place in (top, bottom))
            low = 0 if window is None else first - window + 1
            sure = 0 if window is None else end - window  # seen by the last query, so by all
            full = bottom - top == BLOCK
            for start, key in [pair for s in segments for pair in placed.get(s, [])]:
                offset = start - key.position  # of a position's place
                a, b = max(low, key.position), min(end, key.end)
                if a < b:
                    some[row, (a + offset) // BLOCK : (b + offset - 1) // BLOCK + 1] = True
                a, b = max(sure, key.position), min(first + 1, key.end)
                if full and a < b:
                    whole[row, -(-(a + offset) // BLOCK) : (b + offset) // BLOCK] = True
    return some, whole


def _placed(runs: list[Run]) -> dict[tuple[int, int], list[tuple[int, Run]]]:
    """By unit and response: the start of each run, and the run."""
    found: dict[tuple[int, int], list[tuple[int, Run]]] = {}
    begin = 0
    for run in runs:
        found.setdefault((run.unit, run.response), []).append((begin, run))
        begin += run.tokens
    return found


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The number of marked places in each row [Q], and these places first [Q, K]: int32."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1).int(), order.int()
