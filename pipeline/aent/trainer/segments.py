"""Which packed tokens attend to which, as pieces that a fused attention can compute.

A token attends to earlier tokens of its own sequence: its unit's prompt and its own response. Long
runs of tokens are computed one by one, each only with the keys that it sees: there is no padding,
and no mask between responses that share a prompt. Short units are joined in a padded batch, since
many small calls would cost more than the padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aent.data.flat import to_device
from aent.models.attention import ROWS, SHORT


@dataclass(frozen=True)
class Run:
    """Tokens that follow one another both in the packed layout and in their own sequence.

    unit: the unit of the tokens. response: 0 for its prompt, or for all of a sequence that shares
    nothing; tokens of other responses see their own and the prompt. position: of the first token in
    its own sequence. tokens: how many, at least 1.
    """

    unit: int
    response: int
    position: int
    tokens: int

    @property
    def end(self) -> int:
        return self.position + self.tokens


@dataclass(frozen=True)
class Scoring:
    """How a layer scores the keys that a query sees.

    window: tokens that one attends to at most, itself included. scale: of the products. softcap:
    bound of the scores s, which become softcap tanh(s / softcap) (Gemma 2, arXiv 2408.00118).
    """

    window: int | None
    scale: float
    softcap: float | None


@dataclass(frozen=True)
class Stretch:
    """One run of queries, and the runs of keys that they see, with consecutive positions from 0 on
    (there may be keys at the end that none of them sees)."""

    queries: int
    keys: tuple[int, ...]


@dataclass
class Padded:
    """Short units as one batch [B, L], padded on the right, the same for queries and keys.

    index: [B * L] the packed token at each place (padding repeats token 0), None if the packed
    layout is this one. position, response: [B, L] of ``Run``; response is None if all are 0.
    """

    shape: tuple[int, int]
    longest: int  # tokens of the longest sequence
    index: Tensor | None
    position: Tensor
    response: Tensor | None
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, L, L], or [L, L] for all units alike, to be added to scores: 0 where a token (row)
        attends to another, else -inf; None: causal. Made once for all layers.

        Not boolean: torch would convert it in every layer, and keep each layer's for the backward.
        No row is empty: padding attends at least to itself.
        """
        if window is not None and self.longest <= window:
            window = None
        if window is None and self.response is None:
            return None
        if (window, dtype) not in self.masks:
            self.masks[window, dtype] = self._mask(window).to(dtype)
        return self.masks[window, dtype]

    def _mask(self, window: int | None) -> Tensor:
        if self.response is None:
            place = torch.arange(self.shape[1], device=self.position.device)
            allowed = place[:, None] >= place
        else:
            place = self.position[:, None]
            query, key = self.response[:, None, :, None], self.response[:, None, None, :]
            allowed = ((key == 0) | (key == query)).tril()
        if window is not None:  # by position: a response's first token follows other responses
            allowed &= place[..., :, None] - place[..., None, :] < window
        return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)


@dataclass
class Visible:
    """What is computed for queries and keys of these runs, which follow one another.

    order: [T] the row of each packed query in the rows of the ``padded`` batch followed by those of
    all ``stretches``; None if the order is the same.
    """

    queries: list[Run]
    keys: list[Run]
    padded: Padded | None  # the short units
    stretches: list[Stretch]
    order: Tensor | None
    device: torch.device
    gathered: bool = False  # whether keys and queries have different rows
    strips: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    blocks: dict[int | None, Any] = field(default_factory=dict)  # ``flex``'s own, by the window

    def strip(self, rows: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[rows, keys] mask, to be added to scores, of up to ``ROWS`` consecutive queries, of which
        the last is also the last of the keys: a part of one mask for all tiles and layers."""
        if (window, dtype) not in self.strips:
            height = min(ROWS, max(run.tokens for run in self.queries))
            width = max(run.end for run in self.keys)
            width = width if window is None else min(width, window - 1 + height)
            width += -width % 8  # so that parts usually begin where a GPU's kernels need them to
            row = torch.arange(height, device=self.device)[:, None] + width - height
            column = torch.arange(width, device=self.device)
            seen = column <= row
            if window is not None:
                seen &= row - column < window
            strip = torch.zeros(height, width, dtype=dtype, device=self.device)
            self.strips[window, dtype] = strip.masked_fill_(~seen, -torch.inf)
        strip = self.strips[window, dtype]
        return strip[strip.shape[0] - rows :, strip.shape[1] - keys :]


def runs_of(units: Sequence[tuple[int, Sequence[int]]]) -> list[Run]:
    """The runs of units of (prompt tokens, tokens of each response), packed one after another."""
    runs = []
    for unit, (prompt, responses) in enumerate(units):
        present = [n for n in responses if n]
        if len(present) < 2:
            runs.append(Run(unit, 0, 0, prompt + sum(present)))
        else:
            runs.append(Run(unit, 0, 0, prompt))
            runs += [Run(unit, number, prompt, n) for number, n in enumerate(present, 1)]
    return runs


def see(queries: list[Run], keys: list[Run] | None, device: torch.device) -> Visible:
    """Plan the attention of tokens of these runs, without using the device.

    Args:
        keys: if keys and values have other rows than the queries, for example if they were gathered
            from other ranks; None: the same rows.
    """
    short = _short_units(queries) if keys is None else set()
    tokens, first, response, unit = columns(queries)
    place = torch.arange(int(tokens.sum()))
    run = torch.repeat_interleave(torch.arange(len(queries)), tokens)
    inside = torch.tensor([r.unit in short for r in queries])[run]
    batch: Padded | None = None
    order, same = place, True
    if short:
        start = tokens.cumsum(0) - tokens
        position = first[run] + place - start[run]
        batch, cells = _padded(place, unit[run], position, response[run], inside, device)
        order = torch.empty_like(place)
        order[inside] = cells
        order[~inside] = math.prod(batch.shape) + torch.arange(int((~inside).sum()))
        same = len(cells) == math.prod(batch.shape) and bool((order == place).all())
    of_keys = queries if keys is None else keys
    return Visible(
        queries,
        of_keys,
        batch,
        _stretches(queries, of_keys, short),
        None if same else to_device(order, device),
        device,
        gathered=keys is not None,
    )


def _padded(
    place: Tensor,
    unit: Tensor,
    position: Tensor,
    response: Tensor,
    inside: Tensor,
    device: torch.device,
) -> tuple[Padded, Tensor]:
    """The batch of the tokens ``inside`` (other arguments: of all tokens, [T] each), and their
    places in it, [n]."""
    chosen = inside.nonzero()[:, 0]
    _, row, sizes = unit[chosen].unique_consecutive(return_inverse=True, return_counts=True)
    column = torch.arange(len(chosen)) - (sizes.cumsum(0) - sizes)[row]
    shape = len(sizes), int(sizes.max())
    into = row * shape[1] + column
    cells = torch.zeros(3, math.prod(shape), dtype=torch.int64)
    cells[:, into] = torch.stack([place, position, response])[:, chosen]
    index, positions, responses = (to_device(x, device) for x in cells)
    made = Padded(
        shape,
        longest=int(position[chosen].max()) + 1,
        index=None if len(chosen) == len(place) == math.prod(shape) else index,
        position=positions.view(shape),
        response=responses.view(shape) if bool(cells[2].any()) else None,
    )
    return made, into


def columns(runs: list[Run]) -> Tensor:
    """[4, runs] int64: tokens, position, response, unit."""
    return torch.tensor([(r.tokens, r.position, r.response, r.unit) for r in runs]).T


def _short_units(runs: list[Run]) -> set[int]:
    sizes: dict[int, int] = {}
    for run in runs:
        sizes[run.unit] = sizes.get(run.unit, 0) + run.tokens
    return {unit for unit, size in sizes.items() if size <= SHORT}


def _stretches(queries: list[Run], keys: list[Run], short: set[int]) -> list[Stretch]:
    """The stretches of all units except the short ones."""
    of_segment: dict[tuple[int, int], list[int]] = {}
    for number in sorted(range(len(keys)), key=lambda n: keys[n].position):
        of_segment.setdefault((keys[number].unit, keys[number].response), []).append(number)
    stretches = []
    for number, run in enumerate(queries):
        if run.unit in short:
            continue
        whose = [(run.unit, 0)] + [(run.unit, run.response)] * (run.response > 0)
        seen = [k for segment in whose for k in of_segment[segment] if keys[k].position < run.end]
        ends = [0, *(keys[k].end for k in seen)]
        assert [keys[k].position for k in seen] == ends[:-1], "keys of a sequence are missing"
        stretches.append(Stretch(number, tuple(seen)))
    return stretches
