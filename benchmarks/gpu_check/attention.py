"""The local attention and its masks, by sdpa and by flex: forward and gradients against float64,
and which of torch's kernels are used."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from aent.models.bundled import tiny_qwen2
from aent.models.config_json import read
from aent.models.layer_attention import LayerAttention
from aent.trainer.attention import PackedAttention
from aent.trainer.packing import PackedSequences, lay_out
from aent.trainer.segments import see
from gpu_check.report import bounded
from gpu_check.section import Section, of_command_line

Units = list[tuple[int, list[int]]]  # tokens of each prompt and of each of its responses
HEADS, GROUPS, SIZE = 16, 4, 128
# |got - float64| over the largest |float64|, of bf16 numbers
ALLOWED = {"output": 0.02, "gradients": 0.03}


def main(section: Section) -> None:
    scale = 32 if section.rehearse else 64
    alone = [(3 * scale, [5 * scale]), (7 * scale, [scale])]
    shared = [(4 * scale, [3 * scale, scale, 2 * scale]), (2 * scale, [3 * scale] * 2)]
    short = [(40, [24, 8]), (5, [7]), (90, [110])]
    cases: list[tuple[str, Units, int | None, float | None]] = [
        ("causal", [(4 * scale, [4 * scale])] * 2, None, None),
        ("causal, ragged", alone, None, None),
        ("shared prompts", shared, None, None),
        ("short units", short, None, None),
        ("sliding window", alone, 2 * scale, None),
        ("shared prompts, sliding window", shared, 2 * scale, None),
        ("softcap", alone, None, 30.0),
    ]
    for name, units, window, softcap in cases:
        work = partial(check, section, name, units, window, softcap, by_flex=False)
        section.unless_late(name, 3.0, work)
    for name, units, window, softcap in (cases[2], cases[5], cases[6]):  # each is compiled
        work = partial(check, section, f"flex, {name}", units, window, softcap, by_flex=True)
        section.unless_late(f"flex, {name}", 3.0 if section.rehearse else 20.0, work)


def check(
    section: Section,
    name: str,
    units: Units,
    window: int | None,
    softcap: float | None,
    by_flex: bool,
) -> None:
    """One row: errors, milliseconds of a second run, and torch's kernels. No gradients of
    flex_attention without a GPU: torch has none there."""
    facts = dataclasses.replace(
        read(tiny_qwen2.CONFIG, ""),
        attention=(LayerAttention(window, rope=None),),
        numbers={} if softcap is None else {"attn_logit_softcapping": softcap},
    )
    arguments = (None, 1, AttnMaskType.causal, "self")
    attention = PackedAttention(*arguments, facts=facts, by_flex=by_flex)  # type: ignore[arg-type]
    packed, _ = lay_out(units, torch.device(section.device))
    packed.visible = see(packed.runs, None, torch.device(section.device))
    generator = torch.Generator().manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in units)
    shapes = [(total, heads, SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    learns = not (by_flex and section.device == "cpu")
    leaves = [x.to(section.device, torch.bfloat16).requires_grad_(learns) for x in drawn]
    upstream = torch.randn(total, HEADS * SIZE, generator=generator).to(leaves[0])

    def both() -> tuple[Tensor, list[Tensor]]:
        out = attention(*leaves, None, packed_seq_params=packed)
        return out, list(torch.autograd.grad(out, leaves, upstream)) if learns else []

    both()
    wait()
    began = time.perf_counter()
    out, gradients = both()
    wait()
    seconds = time.perf_counter() - began
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = plainly(*wide, seen_by_each(units, window).to(section.device), softcap)
    measured = {"output": off(out, want)}
    if learns:
        wanted = torch.autograd.grad(want, wide, upstream.double())
        measured["gradients"] = max(off(g, w) for g, w in zip(gradients, wanted, strict=True))
    allowed = {what: limit for what, limit in ALLOWED.items() if what in measured}
    measured["ms"] = seconds * 1e3
    row = bounded(section.name, f"bf16, {name}, {total} tokens", measured, allowed)
    section.add(dataclasses.replace(row, note=kernels(attention, leaves, packed)))


def seen_by_each(units: Units, window: int | None) -> Tensor:
    """[T, T] bool: which token (row) attends to which, one token at a time as it is defined."""
    owners: list[tuple[int, int, int]] = []  # unit, response (0: the prompt), position
    for unit, (prompt, responses) in enumerate(units):
        owners += [(unit, 0, place) for place in range(prompt)]
        for number, n in enumerate(responses, 1):
            owners += [(unit, number, prompt + place) for place in range(n)]
    unit, response, position = torch.tensor(owners).unbind(1)
    before = position[:, None] - position
    same = (unit[:, None] == unit) & ((response[:, None] == response) | (response == 0))
    return same & (before >= 0) & (before < (window or len(owners)))


def plainly(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, softcap: float | None
) -> Tensor:
    """[T, heads * d]: softmax over all T tokens of what each sees."""
    key, value = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query, key) * SIZE**-0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    shares = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    return torch.einsum("hij,jhd->ihd", shares, value).flatten(1)


def off(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())


def kernels(attention: PackedAttention, leaves: list[Tensor], packed: PackedSequences) -> str:
    """Which attention kernels of torch's were used, by the names in the graph."""
    node = attention(*leaves, None, packed_seq_params=packed).grad_fn
    left, seen = [node], set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    names = {type(node).__name__ for node in seen if node is not None}
    found = sorted(n for n in names if "ttention" in n or "Softmax" in n)
    return f"torch's kernels: {', '.join(found)}" if found else ""


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    section, _ = of_command_line()
    main(section)
