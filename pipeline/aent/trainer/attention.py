"""The attention of the local layers, on GPU and CPU alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from aent.models.decoder import ModelFacts
from aent.trainer.context import Chunks, causal_mask, gathered
from aent.trainer.packing import PackedSequences
from aent.trainer.rotary import rotate


class PackedAttention(torch.nn.Module):
    """Causal attention within each packed sequence, by torch's scaled_dot_product_attention.

    Units are laid out as one padded batch: a causal mask never looks at padding on the right. Where
    responses share a prompt, the micro-batch's mask keeps them from looking at one another; in a
    layer with a sliding window its mask hides what is further away.
    With context parallelism the queries are those of this rank's chunks, and each chunk is computed
    by itself.
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
        **_parallel: Any,
    ) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale
        self.layer = facts.attention[layer_number - 1]
        self.softcap = facts.numbers.get("attn_logit_softcapping")

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
        """query [T, heads, d], key and value [T, groups, d] -> [T, heads * d]."""
        packed = packed_seq_params
        if self.layer.rope is not None:
            turn = packed.rotations[self.layer.rope]
            query, key = rotate(query, *turn), rotate(key, *turn)
        if packed.chunks is not None:
            return self.own_chunks(query, *gathered(key, value, packed.chunks), packed.chunks)
        query, key, value = (padded(x, packed) for x in (query, key, value))
        mask = packed.mask
        if self.layer.window is not None:
            mask = packed.window_masks.get(self.layer.window, mask)
        mask = None if mask is None else mask.to(query.dtype)
        out = self._attend(query, key, value, mask)
        out = out.transpose(1, 2).flatten(0, 1).flatten(1)  # [B * L, heads * d]
        return out if packed.flat_index is None else out.index_select(0, packed.flat_index)

    def own_chunks(self, query: Tensor, key: Tensor, value: Tensor, chunks: Chunks) -> Tensor:
        """query of this rank's chunks; key and value of all packed tokens. [T / size, heads * d]"""
        parts, masks = [], chunks.masks(self.layer.window, query.dtype)
        queries = query.split([own for _, own in chunks.seen])
        for rows, (seen, _), mask in zip(queries, chunks.seen, masks, strict=True):
            one = [x.transpose(0, 1)[None] for x in (rows, key[seen], value[seen])]
            out = self._attend(one[0], one[1], one[2], mask)
            parts.append(out[0].transpose(0, 1).flatten(1))
        return torch.cat(parts)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query [B, heads, n, d], key and value [B, groups, m, d] -> [B, heads, n, d]. mask: added,
        None: causal, the last of n and m together."""
        if self.softcap is None:
            n, m = query.shape[2], key.shape[2]
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=causal_lower_right(n, m) if mask is None and n < m else mask,
                is_causal=mask is None and n == m,
                scale=self.softmax_scale,
                enable_gqa=True,
            )
        scale = query.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale
        return capped_attention(query, key, value, mask, scale, self.softcap)


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Attention whose scores s become softcap tanh(s / softcap) (Gemma 2, arXiv 2408.00118).

    No fused attention has it: all scores are held, for the backward twice.

    Args:
        query: [B, heads, n, d]; key, value: [B, groups, m, d]. mask: added, None: causal.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * scale
    scores = (scores / softcap).tanh() * softcap
    if mask is None:
        mask = causal_mask(query.shape[2], key.shape[2], query.device).to(query.dtype)
    shares = (scores + mask).softmax(dim=-1, dtype=torch.float32)
    return shares.to(query.dtype) @ value


def padded(x: Tensor, packed: PackedSequences) -> Tensor:
    """[T, heads, d] packed -> [B, heads, L, d] padded on the right."""
    if packed.padded_index is not None:
        x = x.index_select(0, packed.padded_index)
    return x.unflatten(0, packed.batch_shape).transpose(1, 2)
