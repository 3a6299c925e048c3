"""The local attention against one that knows single sequences only."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from aent.models.config_json import read
from aent.models.layer_attention import LayerAttention
from aent.models.model_source import TINY_CONFIG
from aent.trainer.attention import PackedAttention
from aent.trainer.context import Part
from aent.trainer.packing import lay_out, window_mask

HEADS, GROUPS, SIZE = 4, 2, 8
SHARED = [(3, [4, 1, 6]), (7, [2]), (2, [5, 5])]  # tokens of a prompt and of each response
ALONE = [(3, [4]), (7, [2]), (1, [9])]
ALIKE = [(5, [6])]


def of_one_sequence(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None
) -> Tensor:
    """[n, heads, d] of a sequence of n tokens."""
    key, value = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query, key) * SIZE**-0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(len(query))
    before = place[:, None] - place
    seen = (before >= 0) & (before < (window or len(query)))
    shares = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    return torch.einsum("hij,jhd->ihd", shares, value)


def expected(units: list[tuple[int, list[int]]], tensors: list[Tensor], *settings: Any) -> Tensor:
    """[T, heads, d]: the prompt's rows once, then each response's."""
    rows, first = [], 0
    for prompt, responses in units:
        begin = first + prompt
        for n in responses:
            tokens = torch.cat(
                [torch.arange(first, first + prompt), torch.arange(begin, begin + n)]
            )
            out = of_one_sequence(*(x[tokens] for x in tensors), *settings)
            rows += [out[:prompt]] * (begin == first + prompt) + [out[prompt:]]
            begin += n
        first = begin
    return torch.cat(rows)


def attention_of(window: int | None, softcap: float | None) -> PackedAttention:
    facts = dataclasses.replace(
        read(TINY_CONFIG, ""),
        attention=(LayerAttention(window, rope=None),),
        numbers={} if softcap is None else {"attn_logit_softcapping": softcap},
    )
    return PackedAttention(None, 1, AttnMaskType.causal, "self", facts=facts)  # type: ignore[arg-type]


LAYERS = [(None, None), (4, None), (50, None), (None, 0.7), (4, 0.7)]  # window, softcap


@pytest.mark.parametrize("units", [SHARED, ALONE, ALIKE])
@pytest.mark.parametrize(("window", "softcap"), LAYERS)
def test_a_token_sees_its_own_sequence_as_far_as_the_window(units, window, softcap):
    attention = attention_of(window, softcap)
    packed, _ = lay_out(units, torch.device("cpu"))
    if window is not None and (mask := window_mask(packed, window)) is not None:
        packed.window_masks[window] = mask
    assert bool(packed.window_masks) == (window == 4)
    generator = torch.Generator().manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in units)
    tensors = [torch.randn(total, n, SIZE, generator=generator) for n in (HEADS, GROUPS, GROUPS)]
    got = attention(*tensors, None, packed_seq_params=packed)
    want = expected(units, tensors, window, softcap).flatten(1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def filled(units: list[tuple[int, list[int]]], multiple: int) -> list[tuple[int, list[int]]]:
    """With padding behind each unit's last response."""
    more = [-(prompt + sum(sizes)) % multiple for prompt, sizes in units]
    return [(p, [*sizes[:-1], sizes[-1] + n]) for (p, sizes), n in zip(units, more)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("units", [SHARED, ALONE, ALIKE])
@pytest.mark.parametrize(("window", "softcap"), LAYERS)
def test_ranks_with_parts_of_the_queries_compute_the_whole(size, units, window, softcap):
    """With keys and values as ``context.gathered`` gives them."""
    units = filled(units, 2 * size)
    attention = attention_of(window, softcap)
    generator = torch.Generator().manual_seed(0)
    sizes = [prompt + sum(responses) for prompt, responses in units]
    query, *rest = (
        torch.randn(sum(sizes), n, SIZE, generator=generator) for n in (HEADS, GROUPS, GROUPS)
    )
    want = expected(units, [query, *rest], window, softcap).flatten(1)
    for index in range(size):
        part = Part(size, index)
        packed, _ = lay_out(units, torch.device("cpu"), part)
        mine = part.places(sizes)
        got = attention.own_chunks(query[mine], *rest, packed.chunks)
        torch.testing.assert_close(got, want[mine], rtol=0, atol=1e-6)
        assert size * len(mine) == sum(sizes)
