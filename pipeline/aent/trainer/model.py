"""The policy as a Megatron model: built, and filled, from a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce
from torch import Tensor
from transformers import AutoConfig

from aent.layout.parallel import ParallelLayout
from aent.models.decoder import ModelFacts
from aent.recipe.schema import Recipe
from aent.trainer.layers import add_biases, local_block_spec
from aent.trainer.lean_imports import Bridge, bridge_of
from aent.trainer.packing import MicroBatch
from aent.trainer.rotary import scaled_frequencies

try:
    import transformer_engine  # noqa: F401

    HAVE_TRANSFORMER_ENGINE = True
except ImportError:
    HAVE_TRANSFORMER_ENGINE = False


class PolicyModel(GPTModel):
    """A GPT model that hands out hidden states; the output layer is applied inside the loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rotary: RotaryEmbedding | None = None  # set where the local attention applies it
        self.rotary_scale = 1.0  # of its cosines and sines: YaRN's attention factor

    def _postprocess(self, hidden_states: Tensor, **_unused: Any) -> Tensor:
        return hidden_states

    def run(self, micro_batch: MicroBatch) -> Tensor:
        """Forward of this pipeline stage: hidden states [T, 1, hidden] (T / tp if sequence
        parallel), after the final norm on the last stage."""
        packed = micro_batch.packed
        if self.rotary is not None:
            assert packed.positions is not None
            angles = self.rotary(packed.max_seqlen_q, packed_seq=True)[packed.positions, 0]
            dtype = self.config.params_dtype
            cos, sin = angles.cos() * self.rotary_scale, angles.sin() * self.rotary_scale
            packed.cos, packed.sin = cos.to(dtype), sin.to(dtype)
        positions = packed.positions
        return self(micro_batch.tokens, positions, attention_mask=None, packed_seq_params=packed)

    def head_inputs(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """What the output layer multiplies, at some places; last stage only.

        Each rank multiplies its own block of the vocabulary, so each rank's gradient of the hidden
        states is a part of the whole: on the way back the parts are summed here.

        Args:
            hidden: what ``run`` returned.
            places: [N] int64, into the packed tokens.

        Returns:
            [N, hidden] hidden states and this rank's block [V_padded / tp, hidden] of the weight,
            with rows beyond the true vocabulary on the last ranks.
        """
        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=group)
        chosen = hidden.squeeze(1).index_select(0, places)
        if not self.config.sequence_parallel:
            chosen = copy_to_tensor_model_parallel_region(chosen, group=group)
        weight = self.output_layer.weight
        if weight is None:
            weight = self.shared_embedding_or_output_weight()
        return chosen, weight

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """[N, V_padded / tp] logits from ``head_inputs``."""
        return linear_with_grad_accumulation_and_async_allreduce(
            hidden,
            weight,
            bias=None,
            gradient_accumulation_fusion=self.config.gradient_accumulation_fusion,
            allreduce_dgrad=False,  # head_inputs sums
            sequence_parallel=False,
            tp_group=self.pg_collection.tp,
        )


def open_bridge(recipe: Recipe, facts: ModelFacts, model_path: Path) -> Bridge:
    """mbridge's description of the model: Megatron's configuration and both weight mappings.

    Raises:
        ValueError: for a model whose window is below the recipe's lengths.
    """
    longest = recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens
    if (why := facts.past_window(longest)) is not None:
        raise ValueError(f"{model_path}: {longest} tokens are {why}")
    hf_config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
    # under transformers 5 mbridge looks for these where they no longer are
    hf_config.rope_theta = facts.rope["rope_theta"]
    hf_config.rope_scaling = None
    hf_config.head_dim = facts.head_dim
    dtype = getattr(torch, recipe.model.dtype)
    layout = ParallelLayout.of(recipe.trainer)
    tp = layout.tensor
    bridge = bridge_of(facts.family, hf_config, dtype=dtype, make_vocab_size_divisible_by=tp)
    last = layout.stage_layers(facts.layers, facts.head_layers)[-1]
    bridge.set_extra_args(
        num_layers_in_last_pipeline_stage=len(last) if layout.pipeline > 1 else None,
        sequence_parallel=recipe.trainer.sequence_parallel and tp > 1,
        # every weight is read from the folder (Megatron's own switch, perform_initialization,
        # would leave out the attributes that say which parameters are sharded)
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        gradient_accumulation_fusion=tensor_parallel.layers._grad_accum_fusion_available,
        # losses are sums whose weights carry the denominators: Megatron scales nothing
        calculate_per_token_loss=True,
        **recipe.trainer.megatron,
    )
    # with tied embeddings the last of several stages keeps a copy under another name (mbridge
    # knows this for some models only, and would write it into a table that all models share)
    head = "model.embed_tokens.weight" if hf_config.tie_word_embeddings else "lm_head.weight"
    bridge._DIRECT_MAPPING = {**bridge._DIRECT_MAPPING, "output_layer.weight": head}
    layer = "model.layers.{layer_number}"
    bridge._ATTENTION_MAPPING = {
        **bridge._ATTENTION_MAPPING,
        "self_attention.linear_proj.bias": [f"{layer}.self_attn.o_proj.bias"],
    }
    bridge._MLP_MAPPING = {
        **bridge._MLP_MAPPING,
        "mlp.linear_fc1.bias": [f"{layer}.mlp.{name}_proj.bias" for name in ("gate", "up")],
        "mlp.linear_fc2.bias": [f"{layer}.mlp.down_proj.bias"],
    }
    return bridge


def _leave(weight: Tensor) -> Tensor:
    return weight


def build_model(
    bridge: Bridge, facts: ModelFacts, layout: ParallelLayout, model_path: Path
) -> PolicyModel:
    """This rank's shard of the model, with the folder's weights. Collective.

    Raises:
        ValueError: for weights that are not finite, or that nothing has filled.
    """
    args = bridge._get_gptmodel_args()
    bridge.vocab_size = args["vocab_size"]
    bridge.padded_vocab_size = -(-bridge.vocab_size // layout.tensor) * layout.tensor
    args["vocab_size"] = bridge.padded_vocab_size
    config = bridge.config
    rotary, frequencies, scale = None, None, 1.0
    if facts.rope["rope_type"] != "default":
        frequencies, scale = scaled_frequencies(facts, torch.cuda.current_device())
    if HAVE_TRANSFORMER_ENGINE:  # not run where this was written
        if scale != 1:  # of queries and keys alike, so squared in their products
            config.softmax_scale = scale**2 / facts.head_dim**0.5
        spec = bridge._get_transformer_layer_spec()
    else:
        spec = local_block_spec(config)
        rotary = RotaryEmbedding(
            kv_channels=config.kv_channels,
            rotary_percent=1.0,
            rotary_base=args["rotary_base"],
        )
        args["position_embedding_type"] = "none"  # PackedAttention applies it
    add_biases(spec, facts)
    stage = layout.coordinates(dist.get_rank()).pipeline
    model = PolicyModel(
        config=config,
        transformer_layer_spec=spec,
        pre_process=layout.has_embedding(stage),
        post_process=layout.has_head(stage),
        share_embeddings_and_output_weights=bridge.hf_config.tie_word_embeddings,
        **args,
    )
    model.rotary, model.rotary_scale = rotary, scale
    if frequencies is not None:
        (rotary or model.rotary_pos_emb).inv_freq = frequencies
    for parameter in model.parameters():
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
        parameter.data.fill_(torch.nan)  # what nothing fills is found below
    bridge.load_weights([model], str(model_path))
    names = bridge._weight_name_mapping_mcore_local_to_global(model)
    bad = [names[n] for n, p in model.named_parameters() if not p.isfinite().all()]
    if bad:
        stored = [hf for name in bad for hf in bridge._weight_name_mapping_mcore_to_hf(name)]
        raise ValueError(f"{model_path}: NaN or infinity in the weights {' or '.join(stored)}")
    return model
