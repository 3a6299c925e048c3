"""Layers of the local spec: Megatron's parallel layers with torch's attention and RMSNorm.

Used where Transformer Engine is not installed, on GPU and CPU alike. Parameter names are those of
the Transformer Engine spec, so that importers, exporters and checkpoints are one for both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import Tensor

from aent.models.decoder import ModelFacts
from aent.trainer.packing import PackedSequences


def norm_weight(config: TransformerConfig, size: int) -> torch.nn.Parameter:
    """A norm's scale; with sequence parallelism its gradient is summed over the TP group."""
    weight = torch.ones(size, dtype=config.params_dtype, device=torch.cuda.current_device())
    parameter = torch.nn.Parameter(weight)
    parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return parameter


class RMSNorm(torch.nn.Module):
    """Root mean square normalisation over the last dimension (arXiv 1910.07467)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = norm_weight(config, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNormColumnParallelLinear(ColumnParallelLinear):
    """RMSNorm, then a column-parallel linear layer, as one module like Transformer Engine's."""

    def __init__(
        self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any
    ) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.layer_norm_weight = norm_weight(config, input_size)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        weight = self.layer_norm_weight
        normed = F.rms_norm(x, weight.shape, weight, self.config.layernorm_epsilon)
        return super().forward(normed, *args, **kwargs)


class PackedAttention(torch.nn.Module):
    """Causal attention within each packed sequence, by torch's scaled_dot_product_attention.

    Units are laid out as one padded batch: a causal mask never looks at padding on the right. Where
    responses share a prompt, the micro-batch's mask keeps them from looking at one another.
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
        **_parallel: Any,
    ) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

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
        assert packed.cos is not None
        assert packed.sin is not None
        query = rotate(query, packed.cos, packed.sin)
        key = rotate(key, packed.cos, packed.sin)
        query, key, value = (padded(x, packed) for x in (query, key, value))
        mask = None if packed.mask is None else packed.mask.to(query.dtype)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=True,
        )
        out = out.transpose(1, 2).flatten(0, 1).flatten(1)  # [B * L, heads * d]
        return out if packed.flat_index is None else out.index_select(0, packed.flat_index)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), halves layout; x [T, heads, d]."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-second, first), dim=-1), sin)


def padded(x: Tensor, packed: PackedSequences) -> Tensor:
    """[T, heads, d] packed -> [B, heads, L, d] padded on the right."""
    if packed.padded_index is not None:
        x = x.index_select(0, packed.padded_index)
    return x.unflatten(0, packed.batch_shape).transpose(1, 2)


def local_block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage."""
    qk_norm = RMSNorm if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=LayerNormColumnParallelLinear,
            core_attention=PackedAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )
    mlp = ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(
            linear_fc1=LayerNormColumnParallelLinear, linear_fc2=RowParallelLinear
        ),
    )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm
    )


def add_biases(spec: TransformerBlockSubmodules, facts: ModelFacts) -> None:
    """Give this stage's layers the biases of attention and of feed-forward, each where the model
    has them (Megatron's add_bias_linear is for all or none)."""
    layer = spec.layer_specs[0].submodules if spec.layer_specs else None
    for wanted, part, names in (
        (facts.attention_bias, "self_attention", ("linear_qkv", "linear_proj")),
        (facts.mlp_bias, "mlp", ("linear_fc1", "linear_fc2")),
    ):
        if wanted and layer is not None:
            submodules = getattr(layer, part).submodules
            for name in names:
                setattr(submodules, name, _with_bias(getattr(submodules, name)))


def _with_bias(linear: type[torch.nn.Module]) -> type[torch.nn.Module]:
    class WithBias(linear):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, bias: bool, **kwargs: Any) -> None:
            super().__init__(*args, bias=True, **kwargs)

    return WithBias
