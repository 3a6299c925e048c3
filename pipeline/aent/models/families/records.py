"""The records, one per Hugging Face ``model_type``."""

from __future__ import annotations

from collections.abc import Mapping

from aent.models.families.family import Family

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            computed={
                "hidden_act": ("silu",),  # vLLM serves no other
                "attention_bias": (False, True),
                "mlp_bias": (False, True),
                "attention_dropout": (0.0,),
                "layer_types": (None,),  # vLLM reads these two, transformers does not
                "logit_scale": (None,),
            },
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            window="all_layers",
            key_value_heads=8,
            computed={
                "hidden_act": ("silu",),
                "attention_dropout": (0.0,),
                "layer_types": (None,),  # as for llama, whose class vLLM uses
                "logit_scale": (None,),
            },
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            norm_eps=1e-5,
            fused=True,
            window="all_layers",
            window_size=None,
            ropes=("default", "longrope"),
            computed={
                "hidden_act": ("silu",),
                "attention_dropout": (0.0,),
                "resid_pdrop": (0.0,),
                "embd_pdrop": (0.0,),
                "layer_types": (None,),  # as for llama, whose class vLLM uses
                "logit_scale": (None,),
            },
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            qkv_bias=True,
            window="upper_layers",
            serves_mixed_windows=False,
            key_value_heads=32,
            computed={
                "hidden_act": ("silu",),
                "attention_dropout": (0.0,),
                # of Qwen2.5's 1M variants; vLLM reads it, transformers does not
                "dual_chunk_attention_config": (None,),
            },
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            qk_norm="heads",
            window="upper_layers",
            serves_mixed_windows=False,
            key_value_heads=32,
            head_dim=128,
            computed={
                "hidden_act": ("silu",),
                "attention_bias": (False,),  # vLLM leaves out the output projection's
                "attention_dropout": (0.0,),
            },
        ),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            window="unrotated_layers",
            window_size=None,
            key_value_heads=4,
            tied=True,
            theta=2000000.0,
            unrotated_layers=True,
            computed={
                "hidden_act": ("silu",),
                "attention_bias": (False,),
                "mlp_bias": (False,),
                "attention_dropout": (0.0,),
            },
        ),
        Family(
            "olmo2",
            "Olmo2ForCausalLM",
            norms="after",
            norm_eps=1e-5,
            qk_norm="whole",
            computed={
                "hidden_act": ("silu",),
                "attention_bias": (False,),
                "attention_dropout": (0.0,),
            },
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            norms="around",
            unit_offset=True,
            activation="gelu_pytorch_tanh",
            scaled_embedding=True,
            window="alternating",
            key_value_heads=4,
            head_dim=256,
            tied=True,
            numbers={
                "query_pre_attn_scalar": 256,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
            optional=frozenset({"attn_logit_softcapping", "final_logit_softcapping"}),
            computed={
                "hidden_activation": ("gelu_pytorch_tanh",),
                "attention_bias": (False,),
                "attention_dropout": (0.0,),
                "use_bidirectional_attention": (None,),
            },
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            norms="around",
            unit_offset=True,
            qk_norm="heads",
            activation="gelu_pytorch_tanh",
            scaled_embedding=True,
            window="pattern",
            key_value_heads=4,
            head_dim=256,
            tied=True,
            theta=1000000.0,
            window_theta=10000.0,
            numbers={"query_pre_attn_scalar": 256, "final_logit_softcapping": None},
            optional=frozenset({"final_logit_softcapping"}),
            computed={
                "hidden_activation": ("gelu_pytorch_tanh",),
                "attention_bias": (False,),
                "attention_dropout": (0.0,),
                "attn_logit_softcapping": (None,),  # neither transformers nor vLLM applies it
                "use_bidirectional_attention": (False,),
            },
        ),
        Family(
            "granite",
            "GraniteForCausalLM",
            numbers={
                "embedding_multiplier": 1.0,
                "attention_multiplier": 1.0,
                "residual_multiplier": 1.0,
                "logits_scaling": 1.0,
            },
            computed={
                "hidden_act": ("silu",),
                "attention_bias": (False, True),
                "mlp_bias": (False, True),
                "attention_dropout": (0.0,),
                "layer_types": (None,),  # vLLM reads these four, transformers does not
                "layer_rope_theta": (None,),
                "attention_sinks": (None,),
                "logit_scale": (None,),
            },
        ),
    )
}
