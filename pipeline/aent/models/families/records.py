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
                "layer_types": (None,),  # vLLM reads them, transformers does not
            },
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            norm_eps=1e-5,
            fused=True,
            window="all_layers",
            window_size=None,
            ropes=("default",),
            computed={
                "hidden_act": ("silu",),
                "attention_dropout": (0.0,),
                "resid_pdrop": (0.0,),
                "embd_pdrop": (0.0,),
            },
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            qkv_bias=True,
            window="upper_layers",
            serves_mixed_windows=False,
            key_value_heads=32,
            computed={"hidden_act": ("silu",), "attention_dropout": (0.0,)},
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
    )
}
