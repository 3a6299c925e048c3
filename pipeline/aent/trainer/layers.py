"""Layers of the local spec: Megatron's parallel layers with torch's attention and RMSNorm.

Used on GPU and CPU, unless the attention is Transformer Engine's. Parameter names are those of the
Transformer Engine spec, so that importers, exporters and checkpoints are the same for both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
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
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from aent.models.decoder import ModelFacts
from aent.trainer.attention import PackedAttention


def norm_weight(config: TransformerConfig, size: int) -> torch.nn.Parameter:
    """A norm's scale; with sequence parallelism its gradient is summed over the TP group."""
    weight = torch.ones(size, dtype=config.params_dtype, device=torch.cuda.current_device())
    parameter = torch.nn.Parameter(weight)
    parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return parameter


def rms_norm(x: Tensor, weight: Tensor, config: TransformerConfig) -> Tensor:
    """Root mean square normalization over the last dimension (arXiv 1910.07467), times ``weight``,
    or times 1 + weight, which a 16-bit type would round: such a norm is computed in fp32."""
    if not config.layernorm_zero_centered_gamma:
        return F.rms_norm(x, weight.shape, weight, config.layernorm_epsilon)
    scale = 1 + weight.float()
    return F.rms_norm(x.float(), weight.shape, scale, config.layernorm_epsilon).to(x.dtype)


class RMSNorm(torch.nn.Module):
    """``rms_norm`` with its own weight."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        assert eps == config.layernorm_epsilon
        self.config = config
        self.weight = norm_weight(config, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.config)


class WholeRMSNorm(torch.nn.Module):
    """RMSNorm of x [..., heads / TP, d] over the heads of all tensor-parallel ranks together; each
    rank has the scales of its own heads."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, *, heads: int
    ) -> None:
        super().__init__()
        self.eps = eps
        self.size = heads * hidden_size
        self.ranks = parallel_state.get_tensor_model_parallel_group()
        weight = torch.ones(
            self.size // self.ranks.size(),
            dtype=config.params_dtype,
            device=torch.cuda.current_device(),
        )
        self.weight = torch.nn.Parameter(weight)
        self.weight.tensor_model_parallel = True  # type: ignore[attr-defined]
        self.weight.partition_dim = 0  # type: ignore[attr-defined]
        self.weight.partition_stride = 1  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        squares = wide.square().sum(dim=(-2, -1), keepdim=True)
        # summed over ranks, and so is its gradient
        squares = copy_to_tensor_model_parallel_region(
            reduce_from_tensor_model_parallel_region(squares)
        )
        normed = wide * torch.rsqrt(squares / self.size + self.eps)
        return (normed * self.weight.view(x.shape[-2:])).to(x.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """For Megatron's checkpoints."""
        assert metadata is not None
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.ranks,
            dp_cp_group=metadata["dp_cp_group"],
        )


class LayerNormColumnParallelLinear(ColumnParallelLinear):
    """RMSNorm, then a column-parallel linear layer, as one module like Transformer Engine's."""

    def __init__(
        self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any
    ) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.layer_norm_weight = norm_weight(config, input_size)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return super().forward(rms_norm(x, self.layer_norm_weight, self.config), *args, **kwargs)


class RowParallelLinearNorm(RowParallelLinear):
    """A row-parallel linear layer, with its bias, then RMSNorm."""

    def __init__(
        self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any
    ) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.post_norm_weight = norm_weight(config, output_size)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        out, bias = super().forward(x)
        out = out if bias is None else out + bias
        return rms_norm(out, self.post_norm_weight, self.config), None


def local_block_spec(
    config: TransformerConfig, facts: ModelFacts, by_flex: bool
) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage; by_flex: whether their attention is
    flex_attention."""
    family = facts.family
    first = ColumnParallelLinear if family.norms == "after" else LayerNormColumnParallelLinear
    last = RowParallelLinear if family.norms == "before" else RowParallelLinearNorm
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=first,
            core_attention=partial(PackedAttention, facts=facts, by_flex=by_flex),
            linear_proj=last,
            q_layernorm=_qk_norm(facts, facts.heads),
            k_layernorm=_qk_norm(facts, facts.kv_groups),
        ),
    )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=first, linear_fc2=last)),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm
    )


def _qk_norm(facts: ModelFacts, heads: int) -> Any:
    if facts.family.qk_norm == "whole":
        return ModuleSpec(module=WholeRMSNorm, params={"heads": heads})
    return RMSNorm if facts.family.qk_norm == "heads" else IdentityOp


def adapt(spec: TransformerBlockSubmodules, facts: ModelFacts) -> None:
    """Add to this stage's layers what Megatron's configuration does not have: biases of attention
    and of feed-forward, separately (its add_bias_linear is for all or none), and the multiplier of
    additions to the residual stream."""
    if not spec.layer_specs:
        return
    layer = spec.layer_specs[0].submodules
    for wanted, part, names in (
        (facts.attention_bias, "self_attention", ("linear_qkv", "linear_proj")),
        (facts.mlp_bias, "mlp", ("linear_fc1", "linear_fc2")),
    ):
        if wanted:
            submodules = getattr(layer, part).submodules
            for name in names:
                setattr(submodules, name, _with_bias(getattr(submodules, name)))
    if (multiplier := facts.numbers.get("residual_multiplier", 1.0)) != 1:
        layer.self_attn_bda = layer.mlp_bda = _scaled_add(multiplier)


def _with_bias(linear: type[torch.nn.Module]) -> type[torch.nn.Module]:
    class WithBias(linear):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, bias: bool, **kwargs: Any) -> None:
            super().__init__(*args, bias=True, **kwargs)

    return WithBias


def _scaled_add(multiplier: float) -> Any:
    """Replaces ``get_bias_dropout_add``, without dropout, which no model here has."""

    def choose(_training: bool, _fused: bool) -> Any:
        def add(output: tuple[Tensor, Tensor | None], residual: Tensor, _dropout: float) -> Tensor:
            x, bias = output
            return residual + (x if bias is None else x + bias) * multiplier

        return add

    return choose
