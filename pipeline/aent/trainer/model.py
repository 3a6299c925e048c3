"""The policy as a Megatron model, built and loaded from a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce
from torch import Tensor

from aent.layout.parallel import ParallelLayout
from aent.models.attention import attention_of, why_not_transformer_engine
from aent.models.decoder import ModelFacts
from aent.recipe.schema import Recipe
from aent.runtime.log import log
from aent.trainer.bridge import DecoderBridge
from aent.trainer.layers import adapt, local_block_spec
from aent.trainer.overlap import announced, wait_for_parameters
from aent.trainer.packing import MicroBatch
from aent.trainer.rotary import Rotary, rotary
from aent.trainer.segments import see


class PolicyModel(GPTModel):
    """A GPT model that returns hidden states; the loss applies the output layer."""

    facts: ModelFacts  # set after Megatron's own constructor, as are
    rotaries: tuple[Rotary, ...] = ()  # embeddings that the local attention applies

    def _postprocess(self, hidden_states: Tensor, **_unused: Any) -> Tensor:
        return hidden_states

    @property
    def logits_softcap(self) -> float | None:
        """The softcap of the logits (``entropy.rows.capped``)."""
        return self.facts.numbers.get("final_logit_softcapping")

    def run(self, micro_batch: MicroBatch) -> Tensor:
        """Forward of this pipeline stage: hidden states [T, 1, hidden] (T / tp if sequence
        parallel), after the final norm on the last stage."""
        tokens, packed = micro_batch.tokens, micro_batch.packed
        positions = packed.positions
        if self.rotaries:
            assert positions is not None
            dtype = self.config.params_dtype
            packed.rotations = [turn(positions, dtype) for turn in self.rotaries]
            packed.visible = see(packed.runs, packed.all_runs, positions.device)
        embedded, scale = None, self.facts.embedding_scale
        if self.pre_process and scale != 1:
            if self.facts.family.scaled_embedding:  # transformers and vLLM round it
                scale = torch.tensor(scale, dtype=self.config.params_dtype).item()
            embedded = self.embedding(tokens, positions) * scale
        return self(
            tokens, positions, attention_mask=None, decoder_input=embedded, packed_seq_params=packed
        )

    def head_inputs(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the output layer at some places; only on the last stage.

        Each rank multiplies its own block of the vocabulary, so each rank's gradient of the hidden
        states is a part of the whole: the backward sums the parts here.

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
        if (scaling := self.facts.numbers.get("logits_scaling", 1.0)) != 1:
            chosen = chosen / scaling
        if not self.config.sequence_parallel:
            chosen = copy_to_tensor_model_parallel_region(chosen, group=group)
        wait_for_parameters(self.output_layer)
        weight = self.output_layer.weight
        if weight is None:
            weight = self.shared_embedding_or_output_weight()
        return announced(chosen, weight), weight

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


def open_bridge(recipe: Recipe, facts: ModelFacts) -> DecoderBridge:
    """Megatron's configuration, and the weight mappings in both directions.

    Raises:
        ValueError: if the recipe has longer sequences than the model supports.
    """
    total = recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens
    if facts.longest is not None and total > facts.longest:
        raise ValueError(f"the model is computed for {facts.longest} tokens at most, not {total}")
    layout = ParallelLayout.of(recipe.trainer)
    tp = layout.tensor
    dtype = getattr(torch, recipe.model.dtype)
    bridge = DecoderBridge(facts, dtype=dtype, make_vocab_size_divisible_by=tp)
    bridge.attention = attention_of(recipe, facts)
    because = ""
    if recipe.trainer.attention == "auto" and (why := why_not_transformer_engine(recipe, facts)):
        because = f" ({why})"
    log.info(f"aent: attention: {bridge.attention}{because}")
    last = layout.stage_layers(facts.layers, facts.head_layers)[-1]
    bridge.set_extra_args(
        num_layers_in_last_pipeline_stage=len(last) if layout.pipeline > 1 else None,
        sequence_parallel=recipe.trainer.sequence_parallel and tp > 1,
        # every weight is read from the folder (Megatron's own switch, perform_initialization,
        # would leave out the attributes that say which parameters are sharded)
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        # Transformer Engine's rotation of packed sequences; otherwise Megatron loops over them in
        # every layer (the local attention has its own)
        apply_rope_fusion=bridge.attention == "transformer_engine",
        gradient_accumulation_fusion=tensor_parallel.layers._grad_accum_fusion_available,
        # losses are sums whose weights carry the denominators: Megatron scales nothing
        calculate_per_token_loss=True,
        **recipe.trainer.megatron,
    )
    return bridge


def _leave(weight: Tensor) -> Tensor:
    return weight


def build_model(bridge: DecoderBridge, layout: ParallelLayout, model_path: Path) -> PolicyModel:
    """This rank's shard of the model, with the folder's weights. Collective.

    Raises:
        ValueError: if weights are not finite, or a parameter gets none.
    """
    facts = bridge.facts
    args = bridge._get_gptmodel_args()
    bridge.vocab_size = args["vocab_size"]
    bridge.padded_vocab_size = -(-bridge.vocab_size // layout.tensor) * layout.tensor
    args["vocab_size"] = bridge.padded_vocab_size
    config = bridge.config
    rotaries = tuple(rotary(rope, facts, torch.cuda.current_device()) for rope in facts.ropes)
    engine = bridge.attention == "transformer_engine"
    if engine:  # not run here, since there was no GPU
        if (scale := rotaries[0].scale) != 1:  # for queries and keys alike: squared in products
            config.softmax_scale = scale**2 * (facts.attention_scale or facts.head_dim**-0.5)
        spec = bridge._get_transformer_layer_spec()
    else:
        spec = local_block_spec(config, facts, by_flex=bridge.attention == "flex")
        args["position_embedding_type"] = "none"  # PackedAttention applies it
    adapt(spec, facts)
    stage = layout.coordinates(dist.get_rank()).pipeline
    # Megatron 0.19 builds such norms only if this is set, and then sums their gradients over TP
    # ranks, which is right only for norms of single heads
    config.qk_layernorm = facts.family.qk_norm != "none"
    model = PolicyModel(
        config=config,
        transformer_layer_spec=spec,
        pre_process=layout.has_embedding(stage),
        post_process=layout.has_head(stage),
        share_embeddings_and_output_weights=facts.tied_embeddings,
        **args,
    )
    config.qk_layernorm = facts.family.qk_norm == "heads"
    model.facts = facts
    if engine:
        model.rotary_pos_emb.inv_freq = rotaries[0].frequencies
    else:
        model.rotaries = rotaries
    for parameter in model.parameters():
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
        parameter.data.fill_(torch.nan)  # NaN that no weight replaces is found below
    bridge.load_weights([model], str(model_path))
    names = bridge._weight_name_mapping_mcore_local_to_global(model)
    bad = [names[n] for n, p in model.named_parameters() if not p.isfinite().all()]
    if bad:
        stored = [hf for name in bad for hf in bridge._weight_name_mapping_mcore_to_hf(name)]
        raise ValueError(f"{model_path}: NaN or infinity in the weights {' or '.join(stored)}")
    return model
