"""A decoder's sizes and weights, as its configuration and its family's record have them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aent.models.families import Family


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder, and what its family does with them."""

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
    window: int | None  # tokens that one attends to at most, itself included, in some layer
    rope: dict[str, Any]  # rope_type, rope_theta and the type's own parameters

    @property
    def layer_weights(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face names of one layer's weights, below model.layers.N., and their shapes."""
        hidden, ffn, head = self.hidden, self.ffn, self.head_dim
        queries, keys = self.heads * head, self.kv_groups * head
        weights: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.o_proj.weight": (hidden, queries),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        rows = {"q": queries, "k": keys, "v": keys}, {"gate": ffn, "up": ffn}
        if self.family.fused:
            rows = {"qkv": queries + 2 * keys}, {"gate_up": 2 * ffn}
        weights |= {f"self_attn.{name}_proj.weight": (n, hidden) for name, n in rows[0].items()}
        weights |= {f"mlp.{name}_proj.weight": (n, hidden) for name, n in rows[1].items()}
        for name in self._biased:
            weights[f"{name}.bias"] = weights[f"{name}.weight"][:1]
        if self.family.qk_norm:
            weights |= {f"self_attn.{name}_norm.weight": (head,) for name in "qk"}
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
        """What the output layer costs, in layers: by multiplications, on response tokens alone,
        taken as half of all tokens."""
        matrices = (shape for shape in self.layer_weights.values() if len(shape) == 2)
        return self.embedding_parameters / 2 / sum(map(math.prod, matrices))

    def past_window(self, tokens: int) -> str | None:
        """What such a length is above, where the window would hide tokens; None where it would not.

        No attention of the trainer's has a window: up to its size every layer is the same without.
        """
        if self.window is None or tokens <= self.window:
            return None
        return f"more than the model's sliding_window={self.window}, which is not implemented"
