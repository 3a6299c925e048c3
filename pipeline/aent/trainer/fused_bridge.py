"""The weight mapping of families that store queries, keys and values as one matrix, gate and up as
another (Phi-3)."""

from __future__ import annotations

from typing import ClassVar

import torch
from mbridge.models.llama import LLaMABridge
from torch import Tensor

QKV, GATE_UP = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"


class FusedBridge(LLaMABridge):
    """Megatron's linear_qkv has the rows of a key-value group after one another; these models have
    all queries, all keys, all values. Its linear_fc1 is stored as it is."""

    _ATTENTION_MAPPING: ClassVar = {
        **LLaMABridge._ATTENTION_MAPPING,
        QKV: ["model.layers.{layer_number}.self_attn.qkv_proj.weight"],
    }
    _MLP_MAPPING: ClassVar = {
        **LLaMABridge._MLP_MAPPING,
        GATE_UP: ["model.layers.{layer_number}.mlp.gate_up_proj.weight"],
    }

    def _weight_to_mcore_format(self, mcore_weights_name: str, hf_weights: list[Tensor]) -> Tensor:
        if QKV in mcore_weights_name:
            config = self.hf_config
            keys = config.num_key_value_heads * config.head_dim
            queries = config.num_attention_heads * config.head_dim
            hf_weights = list(hf_weights[0].split([queries, keys, keys]))
        return super()._weight_to_mcore_format(mcore_weights_name, hf_weights)

    def _weight_to_hf_format(
        self, mcore_weights_name: str, mcore_weights: Tensor
    ) -> tuple[list[str], list[Tensor]]:
        if QKV not in mcore_weights_name:
            return super()._weight_to_hf_format(mcore_weights_name, mcore_weights)
        config = self.hf_config
        groups, head = config.num_key_value_heads, config.head_dim
        rows = mcore_weights.unflatten(0, (groups, -1))
        parts = rows.split([rows.shape[1] - 2 * head, head, head], dim=1)
        fused = torch.cat([part.flatten(0, 1) for part in parts])
        return self._weight_name_mapping_mcore_to_hf(mcore_weights_name), [fused]
