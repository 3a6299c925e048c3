"""The local attention against one that only computes single sequences."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from aent.models.bundled import tiny_qwen2
from aent.models.config_json import read
from aent.models.layer_attention import LayerAttention
from aent.trainer import attention, flex, segments
from aent.trainer.attention import PackedAttention
from aent.trainer.context import Part
from aent.trainer.packing import PackedSequences, lay_out
from aent.trainer.segments import Run, see

CPU = torch.device("cpu")
HEADS, GROUPS, SIZE = 4, 2, 8
SHARED = [(3, [4, 1, 6]), (7, [2]), (2, [5, 5])]  # tokens of a prompt and of each response
ALONE = [(3, [4]), (7, [2]), (1, [9])]
ALIKE = [(5, [6])]
UNITS = [SHARED, ALONE, ALIKE, [(9, [14]), (3, [2]), (2, [3, 1])], [(4, [6]), (3, [5])]]


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


def drawn(units: list[tuple[int, list[int]]]) -> list[Tensor]:
    """Queries, keys and values of all tokens."""
    generator = torch.Generator().manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in units)
    shapes = [(total, n, SIZE) for n in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def of(window: int | None, softcap: float | None, by_flex: bool = False) -> PackedAttention:
    facts = dataclasses.replace(
        read(tiny_qwen2.CONFIG, ""),
        attention=(LayerAttention(window, rope=None),),
        numbers={} if softcap is None else {"attn_logit_softcapping": softcap},
    )
    arguments = (None, 1, AttnMaskType.causal, "self")
    return PackedAttention(*arguments, facts=facts, by_flex=by_flex)  # type: ignore[arg-type]


def laid_out(units: list[tuple[int, list[int]]]) -> PackedSequences:
    packed, _ = lay_out(units, CPU)
    packed.visible = see(packed.runs, None, CPU)
    return packed


@pytest.fixture(params=["as one padded batch", "one by one", "some of both"])
def few_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sizes that a unit of a few tokens is beyond, or not."""
    if request.param != "as one padded batch":
        monkeypatch.setattr(segments, "SHORT", 0 if request.param == "one by one" else 9)
        for module in (segments, attention):
            monkeypatch.setattr(module, "ROWS", 3)
    return request.param


SETTINGS = [(None, None), (4, None), (50, None), (4, 0.7), (None, 0.7)]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(("window", "softcap"), SETTINGS)
def test_a_token_sees_its_own_sequence_as_far_as_the_window(units, window, softcap, few_rows):
    packed, tensors = laid_out(units), drawn(units)
    got = of(window, softcap)(*tensors, None, packed_seq_params=packed)
    want = expected(units, tensors, window, softcap).flatten(1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad(x, tensors, upstream) for x in (got, want))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    longest = max(run.tokens for run in packed.runs)
    assert all(strip.shape[0] <= min(longest, segments.ROWS) for strip in made(packed))


def made(packed: PackedSequences) -> list[Tensor]:
    """Every mask that a micro-batch has, but for those of short units."""
    assert packed.visible is not None
    return list(packed.visible.strips.values())


@pytest.mark.parametrize("units", [SHARED, ALONE, [(150, [130, 300]), (40, [1])]])
@pytest.mark.parametrize(("window", "softcap"), SETTINGS)
def test_flex_attention_gives_the_same(units, window, softcap):
    packed, tensors = laid_out(units), [x.detach() for x in drawn(units)]
    got = of(window, softcap, by_flex=True)(*tensors, None, packed_seq_params=packed)
    want = expected(units, tensors, window, softcap).flatten(1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 16, 40, 200])
def test_blocks_of_flex_attention_are_those_with_a_visible_pair(window, monkeypatch):
    monkeypatch.setattr(flex, "BLOCK", 16)
    units = [(70, [50, 33, 64]), (5, [7]), (96, [32, 32]), (10, [3, 4])]
    runs = lay_out(units, CPU)[0].runs
    some, whole = flex._blocks(runs, runs, window)
    seen = seen_by_each(units, window)
    size = -len(seen) % 16
    tiles = torch.nn.functional.pad(seen, (0, size, 0, size)).unflatten(0, (-1, 16))
    tiles = tiles.unflatten(2, (-1, 16)).transpose(1, 2)
    assert torch.equal(some, tiles.any(-1).any(-1))
    # blocks known to be seen completely: those of one run of queries and one of keys
    run = torch.cat([torch.full((r.tokens,), n) for n, r in enumerate(runs)])
    of_block = torch.nn.functional.pad(run, (0, size), value=-1).view(-1, 16)
    alone = (of_block == of_block[:, :1]).all(-1)
    assert torch.equal(whole, tiles.all(-1).all(-1) & alone[:, None] & alone)
    assert whole.any() == (window != 1 and window != 16)
    mask = flex.block_mask(runs, runs, window, CPU)
    assert torch.equal(mask.to_dense()[0, 0].bool(), some)


def test_keys_may_be_other_rows_than_queries():
    """As of context parallelism: some rows of each sequence as queries, all keys, in another
    order."""
    units = [(6, [5, 9]), (8, [])]
    whole, tensors = laid_out(units), drawn(units)
    want = of(None, None)(*tensors, None, packed_seq_params=whole)
    keys = [Run(1, 0, 4, 4), Run(0, 2, 6, 9), Run(0, 0, 0, 3), Run(1, 0, 0, 4), Run(0, 1, 6, 5),
            Run(0, 0, 3, 3)]  # fmt: skip
    queries = [Run(0, 0, 3, 3), Run(0, 2, 9, 6), Run(1, 0, 2, 2)]
    starts = {(0, 0): 0, (0, 1): 6 - 6, (0, 2): 11 - 6, (1, 0): 20}  # of position 0, in ``whole``

    def rows(runs: list[Run]) -> Tensor:
        first = [(starts[r.unit, r.response] + r.position, r.tokens) for r in runs]
        return torch.cat([torch.arange(begin, begin + n) for begin, n in first])

    part = PackedSequences(qkv_format="thd", visible=see(queries, keys, CPU))
    query, key, value = (x.detach() for x in tensors)
    chosen = query[rows(queries)], key[rows(keys)], value[rows(keys)]
    for by_flex in (False, True):
        got = of(None, None, by_flex)(*chosen, None, packed_seq_params=part)
        torch.testing.assert_close(got, want[rows(queries)], rtol=0, atol=1e-6)


def seen_by_each(units: list[tuple[int, list[int]]], window: int | None) -> Tensor:
    """[T, T] bool: which token (row) attends to which, one token at a time as it is defined."""
    owners: list[tuple[int, int, int]] = []  # unit, response (0: the prompt), position
    for unit, (prompt, responses) in enumerate(units):
        owners += [(unit, 0, place) for place in range(prompt)]
        for number, n in enumerate(responses, 1):
            owners += [(unit, number, prompt + place) for place in range(n)]
    seen = torch.zeros(len(owners), len(owners), dtype=torch.bool)
    for row, (unit, response, position) in enumerate(owners):
        for column, (other, theirs, before) in enumerate(owners):
            mine = unit == other and theirs in (0, response) and before <= position
            seen[row, column] = mine and position - before < (window or len(owners))
    return seen


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(("window", "softcap"), SETTINGS)
def test_context_parallel_ranks_compute_the_whole(size, units, window, softcap, monkeypatch):
    """Each the queries of its own part, with keys and values as ``context.gathered`` gives them."""
    for module in (segments, attention):
        monkeypatch.setattr(module, "ROWS", 3)
    by_flex = [False, True] if (units, size) == (SHARED, 2) else [False]
    ranks = [Part(size, index) for index in range(size)]
    more = [-(prompt + sum(sizes)) % ranks[0].multiple for prompt, sizes in units]
    units = [  # with the padding that packing gives them
        (p, [*sizes[:-1], sizes[-1] + n]) if sizes else (p + n, sizes)
        for (p, sizes), n in zip(units, more)
    ]
    sizes = [prompt + sum(responses) for prompt, responses in units]
    query, *rest = (x.detach() for x in drawn(units))
    key, value = (x[torch.cat([part.places(sizes) for part in ranks])] for x in rest)
    want = expected(units, [query, *rest], window, softcap).flatten(1)
    for part in ranks:
        packed, _ = lay_out(units, CPU, part)
        visible = see(packed.runs, packed.all_runs, CPU)
        here = PackedSequences(qkv_format="thd", visible=visible)
        mine = part.places(sizes)
        assert size * len(mine) == sum(sizes)
        for flexed in by_flex:
            layer = of(window, softcap, flexed)
            got = layer(query[mine], key, value, None, packed_seq_params=here)
            torch.testing.assert_close(got, want[mine], rtol=0, atol=1e-6)
