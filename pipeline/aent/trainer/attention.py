"""The attention of the local layers, on GPU and CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor
from torch.nn.attention.bias import CausalBias, causal_lower_right

from aent.models.decoder import ModelFacts
from aent.trainer import flex
from aent.trainer.context import gathered
from aent.trainer.packing import PackedSequences
from aent.trainer.rotary import rotate
from aent.trainer.segments import ROWS, Padded, Scoring, Stretch, Visible


class PackedAttention(torch.nn.Module):
    """Causal attention within each packed sequence, by torch's scaled_dot_product_attention or
    flex_attention.

    The rotary embedding is applied here, with cos and sin gathered by position once per
    micro-batch (Megatron's packed one loops over sequences in every layer).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        *,
        facts: ModelFacts,
        by_flex: bool = False,
        **_parallel: Any,
    ) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale
        self.layer = facts.attention[layer_number - 1]
        self.softcap = facts.numbers.get("attn_logit_softcapping")
        self.by_flex = by_flex

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: PackedSequences,
        **_unused: Any,
    ) -> Tensor:
        """query [T, heads, d], key and value [T, groups, d] -> [T, heads * d], for this rank's own
        tokens; collective over context-parallel ranks, which share sequences."""
        packed = packed_seq_params
        assert packed.visible is not None
        if self.layer.rope is not None:
            turn = packed.rotations[self.layer.rope]
            query, key = rotate(query, *turn), rotate(key, *turn)
        if packed.all_runs is not None:
            key, value = gathered(key, value)
        scale = self.softmax_scale
        if scale is None:
            scale = 1 / math.sqrt(query.shape[-1])
        attend = flex.attend if self.by_flex else attend_by_pieces
        scoring = Scoring(self.layer.window, scale, self.softcap)
        return attend(query, key, value, packed.visible, scoring).flatten(1)


def attend_by_pieces(
    query: Tensor, key: Tensor, value: Tensor, visible: Visible, scoring: Scoring
) -> Tensor:
    """Attention of packed queries, one piece of ``visible`` after another.

    Args:
        query: [T, heads, d], rows of ``visible.queries``. key, value: [S, groups, d], rows of
            ``visible.keys``.

    Returns:
        [T, heads, d]
    """
    rows = []
    if visible.padded is not None:
        rows.append(_of_padded(query, key, value, visible.padded, scoring))
    if visible.stretches:
        queries = query.split([run.tokens for run in visible.queries])
        sizes = [run.tokens for run in visible.keys]
        keys, values = key.split(sizes), value.split(sizes)
        for stretch in visible.stretches:
            tensors = _heads_first(queries, keys, values, stretch, visible.gathered)
            first = visible.queries[stretch.queries].position
            rows += _of_stretch(*tensors, first, visible, scoring)
    out = rows[0] if len(rows) == 1 else torch.cat(rows)
    return out if visible.order is None else out.index_select(0, visible.order)


def _of_padded(
    query: Tensor, key: Tensor, value: Tensor, batch: Padded, scoring: Scoring
) -> Tensor:
    """[B * L, heads, d]"""

    def padded(x: Tensor) -> Tensor:
        if batch.index is not None:
            x = x.index_select(0, batch.index)
        return x.unflatten(0, batch.shape).transpose(1, 2)

    mask = batch.mask(scoring.window, query.dtype)
    tensors = padded(query), padded(key), padded(value)
    out = attention(*tensors, mask, scoring.scale, scoring.softcap)
    return out.transpose(1, 2).flatten(0, 1)


def _heads_first(
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    stretch: Stretch,
    gathered: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """A stretch's queries [1, heads, n, d], and its keys and values [1, groups, m, d]."""

    def joined(parts: tuple[Tensor, ...]) -> Tensor:
        chosen = [parts[k] for k in stretch.keys]
        if len(chosen) == 1 and not gathered:
            return chosen[0]
        return torch.cat(chosen)  # a view would keep all ranks' keys and values for the backward

    tensors = queries[stretch.queries], joined(keys), joined(values)
    query, key, value = (x.transpose(0, 1)[None] for x in tensors)
    return query, key, value


def _of_stretch(
    query: Tensor, key: Tensor, value: Tensor, first: int, visible: Visible, scoring: Scoring
) -> list[Tensor]:
    """[n, heads, d] in one or more parts, of queries from position ``first`` on.

    If a mask is needed, it is made for a limited number of queries at a time, and only for the keys
    that these see.
    """
    window, scale, softcap = scoring.window, scoring.scale, scoring.softcap
    count, end = query.shape[2], first + query.shape[2]
    narrow = window is not None and window < end
    if softcap is None and not narrow:
        key, value = key[:, :, :end], value[:, :, :end]
        if first == 0:
            return [_rows_first(attention(query, key, value, None, scale))]
        if query.is_cuda:  # flash attention has its own causal mode
            later = causal_lower_right(count, end)
            return [_rows_first(attention(query, key, value, later, scale))]
    parts = []
    for begin in range(0, count, ROWS):
        some = query[:, :, begin : begin + ROWS]
        last = first + begin + some.shape[2]
        low = 0 if window is None else max(0, first + begin - window + 1)
        mask = visible.strip(some.shape[2], last - low, window if narrow else None, query.dtype)
        tensors = some, key[:, :, low:last], value[:, :, low:last]
        parts.append(_rows_first(attention(*tensors, mask, scale, softcap)))
    return parts


def _rows_first(out: Tensor) -> Tensor:
    return out[0].transpose(0, 1)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """[B, heads, L, d] of query [B, heads, L, d] and key and value [B, groups, S, d].

    mask: added to the scores; None: causal, L = S.
    """
    if softcap is not None:
        return capped_attention(query, key, value, mask, scale, softcap)
    if query.is_cuda:  # not run here, since there was no GPU
        plain = mask is None or isinstance(mask, CausalBias)
        if not (plain and query.dtype.itemsize == 2):
            # flash attention accepts neither masks nor float32, and torch's alternative then has
            # no grouped queries
            key, value = (_for_each_head(x, query) for x in (key, value))
        if not plain and mask is not None and mask.storage_offset() % 8:
            mask = mask.contiguous()  # its kernel needs an alignment of 16 bytes
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _for_each_head(x: Tensor, query: Tensor) -> Tensor:
    return x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """``attention`` whose scores s become softcap tanh(s / softcap) (Gemma 2, arXiv 2408.00118).

    Of torch's fused attentions only flex_attention supports it: here the scores are kept, twice for
    the backward.
    """
    key, value = _for_each_head(key, query), _for_each_head(value, query)
    scores = query @ key.transpose(-2, -1) * scale
    scores = (scores / softcap).tanh() * softcap
    if mask is None:
        length = query.shape[2]
        mask = torch.full((length, length), -torch.inf, device=query.device).triu(1)
    shares = (scores + mask.to(query.dtype)).softmax(dim=-1, dtype=torch.float32)
    return shares.to(query.dtype) @ value
