"""A decoder's sizes and weights, from its configuration and its family's record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aent.models.families import Family
from aent.models.layer_attention import LayerAttention

# the norms of one layer: position in the family -> the trainer's name, Hugging Face's name
_ATTENTION_NORM, _MLP_NORM = "linear_qkv.layer_norm_weight", "linear_fc1.layer_norm_weight"
_BEHIND_ATTENTION, _BEHIND_MLP = "linear_proj.post_norm_weight", "linear_fc2.post_norm_weight"
NORMS: dict[str, dict[str, str]] = {
    "before": {_ATTENTION_NORM: "input_layernorm", _MLP_NORM: "post_attention_layernorm"},
    "after": {
        _BEHIND_ATTENTION: "post_attention_layernorm",
        _BEHIND_MLP: "post_feedforward_layernorm",
    },
    "around": {
        _ATTENTION_NORM: "input_layernorm",
        _BEHIND_ATTENTION: "post_attention_layernorm",
        _MLP_NORM: "pre_feedforward_layernorm",
        _BEHIND_MLP: "post_feedforward_layernorm",
    },
}


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder, and its family."""

    family: Family
    layers: int
    hidden: int
    ffn: int  # width of the feed-forward, gate and up each
    heads: int
    kv_groups: int
    head_dim: int
    vocab: int
    max_positions: int
    tied_embeddings: bool
    attention_bias: bool  # of all four projections
    mlp_bias: bool
    attention: tuple[LayerAttention, ...]  # of each layer
    stated_window: int | None  # the value of sliding_window, whether layers use it or not
    ropes: tuple[dict[str, Any], ...]  # rope_type, rope_theta and the type's own parameters
    numbers: dict[str, float]  # from config.json, by the names there, without those that are null

    @property
    def windows(self) -> list[int]:
        """Every size of a sliding window that some layer has."""
        return sorted({layer.window for layer in self.attention if layer.window is not None})

    @property
    def longest(self) -> int | None:
        """Most tokens of a prompt and its response together that are supported, if bounded: a
        ``longrope`` (arXiv 2402.13753) rotates longer sequences differently."""
        rope = self.ropes[0]
        long = rope["rope_type"] == "longrope"
        return int(rope["original_max_position_embeddings"]) if long else None

    @property
    def embedding_scale(self) -> float:
        """The factor on the embeddings."""
        scale = self.hidden**0.5 if self.family.scaled_embedding else 1.0
        return self.numbers.get("embedding_multiplier", scale)

    @property
    def attention_scale(self) -> float | None:
        """The factor on products of queries and keys; None: 1 / sqrt(head size)."""
        if "query_pre_attn_scalar" in self.numbers:
            return self.numbers["query_pre_attn_scalar"] ** -0.5
        return self.numbers.get("attention_multiplier")

    @property
    def plain_layers(self) -> bool:
        """Whether Megatron's Transformer Engine layers compute this model."""
        family = self.family
        return (
            (family.norms, family.unit_offset) == ("before", False)
            and family.qk_norm != "whole"
            and len(self.ropes) == 1
            and len(self.windows) < 2
            and "attn_logit_softcapping" not in self.numbers
        )

    @property
    def layer_weights(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face names of one layer's weights, below model.layers.N., and their shapes."""
        hidden, ffn, head = self.hidden, self.ffn, self.head_dim
        queries, keys = self.heads * head, self.kv_groups * head
        weights: dict[str, tuple[int, ...]] = {
            "self_attn.o_proj.weight": (hidden, queries),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        rows = {"q": queries, "k": keys, "v": keys}, {"gate": ffn, "up": ffn}
        if self.family.fused:
            rows = {"qkv": queries + 2 * keys}, {"gate_up": 2 * ffn}
        weights |= {f"{norm}.weight": (hidden,) for norm in NORMS[self.family.norms].values()}
        weights |= {f"self_attn.{name}_proj.weight": (n, hidden) for name, n in rows[0].items()}
        weights |= {f"mlp.{name}_proj.weight": (n, hidden) for name, n in rows[1].items()}
        for name in self._biased:
            weights[f"{name}.bias"] = weights[f"{name}.weight"][:1]
        if self.family.qk_norm != "none":
            whole = self.family.qk_norm == "whole"
            weights["self_attn.q_norm.weight"] = (queries if whole else head,)
            weights["self_attn.k_norm.weight"] = (keys if whole else head,)
        return weights

    @property
    def _biased(self) -> Iterator[str]:
        if self.family.qkv_bias or self.attention_bias:
            yield from ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        if self.attention_bias:
            yield "self_attn.o_proj"
        if self.mlp_bias:
            yield from ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face names and shapes of all weights; no lm_head.weight with tied embeddings."""
        table = (self.vocab, self.hidden)
        weights: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
        for layer in range(self.layers):
            for name, shape in self.layer_weights.items():
                weights[f"model.layers.{layer}.{name}"] = shape
        weights["model.norm.weight"] = (self.hidden,)
        return weights if self.tied_embeddings else weights | {"lm_head.weight": table}

    @property
    def layer_parameters(self) -> int:
        return sum(map(math.prod, self.layer_weights.values()))

    @property
    def pairs_per_token(self) -> float:
        """How many pairs of attending tokens cost as much as the matrix products of one token, in
        each layer: 2 operations per parameter, 4 per pair, head and head dimension."""
        return self.layer_parameters / (2 * self.heads * self.head_dim)

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the model; a tied output layer counts once."""
        tables = 1 if self.tied_embeddings else 2
        return (
            self.layers * self.layer_parameters + tables * self.embedding_parameters + self.hidden
        )

    @property
    def head_layers(self) -> float:
        """The cost of the output layer, in layers, by multiplications; on response tokens only,
        which are taken as half of all tokens."""
        matrices = (shape for shape in self.layer_weights.values() if len(shape) == 2)
        return self.embedding_parameters / 2 / sum(map(math.prod, matrices))
