"""Conversion of weights between a Hugging Face folder and Megatron, by a family's record.

mbridge reads, splits, merges and names the tensors; the record says which tensors there are and how
they are stored.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mbridge.core.llm_bridge import LLMBridge
from torch import Tensor

from aent.models.decoder import NORMS, ModelFacts
from aent.runtime.environment import Attention

LAYER = "model.layers.{layer_number}"
QKV = "self_attention.linear_qkv.weight"
ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}


class DecoderBridge(LLMBridge):
    """mbridge's description of a model: Megatron's configuration and both weight mappings."""

    attention: Attention  # of the layers

    def __init__(self, facts: ModelFacts, **options: Any) -> None:
        self.facts = facts
        head = "model.embed_tokens" if facts.tied_embeddings else "lm_head"
        self._DIRECT_MAPPING = {
            "embedding.word_embeddings.weight": "model.embed_tokens.weight",
            "decoder.final_layernorm.weight": "model.norm.weight",
            # with tied embeddings, the last of several stages keeps a copy under this name
            "output_layer.weight": f"{head}.weight",
        }
        attention, mlp = _stored_as(facts)
        self._ATTENTION_MAPPING = {f"self_attention.{ours}": names for ours, names in attention}
        self._MLP_MAPPING = {f"mlp.{ours}": names for ours, names in mlp}
        super().__init__(_as_transformers(facts), **options)

    def _build_config(self) -> Any:
        facts, family = self.facts, self.facts.family
        return self._build_base_config(
            activation_func=ACTIVATIONS[family.activation],
            add_qkv_bias=family.qkv_bias,
            qk_layernorm=family.qk_norm == "heads",  # Megatron sums these norms' gradients over TP
            layernorm_zero_centered_gamma=family.unit_offset,
            softmax_scale=facts.attention_scale,
            **_by_layer(facts),
        )

    def _weight_to_mcore_format(self, mcore_weights_name: str, hf_weights: list[Tensor]) -> Tensor:
        """Fused projections: Megatron's linear_qkv has the rows of one key-value group after
        another, the folder all queries, all keys, all values. linear_fc1 is the same in both."""
        if self.facts.family.fused and QKV in mcore_weights_name:
            keys = self.facts.kv_groups * self.facts.head_dim
            queries = self.facts.heads * self.facts.head_dim
            hf_weights = list(hf_weights[0].split([queries, keys, keys]))
        return super()._weight_to_mcore_format(mcore_weights_name, hf_weights)

    def _weight_to_hf_format(
        self, mcore_weights_name: str, mcore_weights: Tensor
    ) -> tuple[list[str], list[Tensor]]:
        if not self.facts.family.fused or QKV not in mcore_weights_name:
            return super()._weight_to_hf_format(mcore_weights_name, mcore_weights)
        head = self.facts.head_dim
        rows = mcore_weights.unflatten(0, (self.facts.kv_groups, -1))
        parts = rows.split([rows.shape[1] - 2 * head, head, head], dim=1)
        whole = torch.cat([part.flatten(0, 1) for part in parts])
        return self._weight_name_mapping_mcore_to_hf(mcore_weights_name), [whole]


def _stored_as(facts: ModelFacts) -> list[list[tuple[str, list[str]]]]:
    """(Megatron's name, Hugging Face names) of a layer's weights: of attention, of feed-forward."""
    projections = {
        "linear_qkv": ["qkv_proj"] if facts.family.fused else ["q_proj", "k_proj", "v_proj"],
        "linear_proj": ["o_proj"],
        "linear_fc1": ["gate_up_proj"] if facts.family.fused else ["gate_proj", "up_proj"],
        "linear_fc2": ["down_proj"],
    }
    parts = []
    for ours, stored in (
        (("linear_qkv", "linear_proj"), "self_attn"),
        (
            ("linear_fc1", "linear_fc2"),
            "mlp",
        ),
    ):
        part = [
            (
                f"{linear}.{kind}",
                [f"{LAYER}.{stored}.{name}.{kind}" for name in projections[linear]],
            )
            for linear in ours
            for kind in ("weight", "bias")
        ]
        part += [
            (norm, [f"{LAYER}.{name}.weight"])
            for norm, name in NORMS[facts.family.norms].items()
            if norm.startswith(ours)
        ]
        parts.append(part)
    parts[0] += [
        (f"{one}_layernorm.weight", [f"{LAYER}.self_attn.{one}_norm.weight"]) for one in "qk"
    ]
    return parts


def _as_transformers(facts: ModelFacts) -> Any:
    """The facts by the names that mbridge reads in transformers' configuration."""
    return SimpleNamespace(
        num_hidden_layers=facts.layers,
        hidden_size=facts.hidden,
        intermediate_size=facts.ffn,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.kv_groups,
        head_dim=facts.head_dim,
        vocab_size=facts.vocab,
        max_position_embeddings=facts.max_positions,
        rms_norm_eps=facts.numbers["rms_norm_eps"],
        rope_theta=facts.ropes[0]["rope_theta"],
        attention_dropout=0.0,
    )


def _by_layer(facts: ModelFacts) -> dict[str, Any]:
    """Per-layer settings of Megatron's own attention, Transformer Engine's."""
    left_out = [int(layer.rope is None) for layer in facts.attention]
    some: dict[str, Any] = {"no_rope_freq": left_out} if any(left_out) else {}
    if not facts.windows:
        return some
    return some | {
        "window_size": (facts.windows[0] - 1, 0),  # tokens to the left and to the right of one
        "window_attn_skip_freq": [int(layer.window is not None) for layer in facts.attention],
    }
