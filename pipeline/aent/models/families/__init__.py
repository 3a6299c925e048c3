"""The families of models that can be trained: one record per Hugging Face ``model_type``.

A record says what the trainer computes for that type. Everybody who needs to know a family reads
it here: the checks, the dry run, the doctor, the estimate, the trainer. What no record says is
refused by name before anything starts (``aent.models.config_json``), so a record may only say what
agrees with transformers' own model (tests/models/test_parity.py). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

# fields of config.json that transformers' classes have and that change nothing about log-probs
INERT = frozenset({
    "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "pretraining_tp", "original_max_position_embeddings",
})  # fmt: skip
# fields that every family has: read as they are
SIZES = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_parameters",
})  # fmt: skip
# which fields say what each token attends to, by the kind of window
WINDOWS: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "all_layers": frozenset({"sliding_window"}),
    # the upper layers, from max_window_layers on or as layer_types has them, if use_sliding_window
    "upper_layers": frozenset(
        {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
    ),
}


@dataclass(frozen=True)
class Family:
    """A decoder with RMSNorm before attention and feed-forward, grouped queries, rotary embedding
    over whole heads and a gated feed-forward; what differs between such families."""

    model_type: str
    architecture: str  # the class of transformers that is trained, and served by vLLM
    bridge: tuple[
        str, str
    ]  # module and class that map its weights, of mbridge or beside the trainer
    qkv_bias: bool = False  # of the query, key and value projections
    fused: bool = False  # query, key and value stored as one matrix, gate and up as another
    qk_norm: bool = False  # RMSNorm over each head of queries and of keys, before the rotation
    window: Literal["none", "all_layers", "upper_layers"] = "none"
    window_size: int | None = 4096  # where config.json does not say
    key_value_heads: int | None = None  # where config.json does not say; None: as many as heads
    head_dim: int | None = None  # where config.json does not say; None: hidden size / heads
    ropes: tuple[str, ...] = ("default", "linear", "dynamic", "yarn", "llama3")  # of ``ROPES``
    # configuration values that change the computation -> those that are computed, the first of
    # them being what transformers takes where config.json does not say
    computed: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def known_fields(self) -> frozenset[str]:
        """Every field of config.json that the family's log-probs can depend on."""
        return SIZES | WINDOWS[self.window] | set(self.computed)


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            ("mbridge.models.llama", "LLaMABridge"),
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
            ("mbridge.models.llama", "LLaMABridge"),
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
            ("aent.trainer.fused_bridge", "FusedBridge"),
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
            ("mbridge.models.qwen2", "Qwen2Bridge"),
            qkv_bias=True,
            window="upper_layers",
            key_value_heads=32,
            computed={"hidden_act": ("silu",), "attention_dropout": (0.0,)},
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            ("mbridge.models.qwen3", "Qwen3Bridge"),
            qk_norm=True,
            window="upper_layers",
            key_value_heads=32,
            head_dim=128,
            computed={
                "hidden_act": ("silu",),
                "attention_bias": (False,),  # vLLM leaves out the output projection's
                "attention_dropout": (0.0,),
            },
        ),
    )
}
# types of rotary embedding -> the parameters they need, and those they may have
ROPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
            "mscale", "mscale_all_dim", "truncate",
        ),
    ),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor"),
        ("original_max_position_embeddings",),
    ),
}  # fmt: skip
