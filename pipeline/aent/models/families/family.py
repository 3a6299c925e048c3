"""What one record of a family says."""

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
    # the layers without rotary embedding, or as layer_types has them, if use_sliding_window
    "unrotated_layers": frozenset({"use_sliding_window", "sliding_window", "layer_types"}),
    # every other layer from the first on, or as layer_types has them
    "alternating": frozenset({"sliding_window", "layer_types"}),
    # all layers but each sliding_window_pattern-th, or as layer_types has them
    "pattern": frozenset({"sliding_window", "layer_types", "sliding_window_pattern"}),
}
_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Family:
    """The differences between families of decoders with RMSNorm, grouped queries, rotary embedding
    over whole heads and a gated feed-forward."""

    model_type: str
    architecture: str  # the class of transformers that is trained, and served by vLLM
    # of attention and feed-forward: before each, after each (before it is added), or both
    norms: Literal["before", "after", "around"] = "before"
    unit_offset: bool = False  # a norm scales by 1 + its weight
    norm_eps: float = 1e-6  # if config.json does not say
    qkv_bias: bool = False  # of the query, key and value projections
    fused: bool = False  # query, key and value stored as one matrix, gate and up as another
    # RMSNorm of queries and of keys, before the rotation: over each head, or over all together
    qk_norm: Literal["none", "heads", "whole"] = "none"
    activation: Literal["silu", "gelu_pytorch_tanh"] = "silu"  # of the gate
    scaled_embedding: bool = False  # the embedding is multiplied by sqrt(hidden size)
    window: Literal[
        "none", "all_layers", "upper_layers", "unrotated_layers", "alternating", "pattern"
    ] = "none"
    window_size: int | None = 4096  # if config.json does not say
    serves_mixed_windows: bool = True  # vLLM does, with a window in some layers only
    key_value_heads: int | None = None  # if config.json does not say; None: as many as heads
    head_dim: int | None = None  # if config.json does not say; None: hidden size / heads
    tied: bool = False  # embeddings, if config.json does not say
    ropes: tuple[str, ...] = ("default", "linear", "dynamic", "yarn", "llama3")  # of ``ROPES``
    theta: float = 10000.0  # base of the rotation, if config.json does not say
    window_theta: float | None = None  # the same of layers with a window, if they have their own
    unrotated_layers: bool = False  # as no_rope_layers and no_rope_layer_interval have them
    # numbers in config.json that the computation uses -> transformers' default; one that may be
    # null there is ``optional``
    numbers: Mapping[str, float | None] = field(default_factory=lambda: _NO_OPTIONS)
    optional: frozenset[str] = frozenset()
    # options that change the computation -> the values that are supported; the first one is
    # transformers' default
    computed: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _NO_OPTIONS)

    @property
    def known_fields(self) -> frozenset[str]:
        """Every field of config.json that the family's log-probs can depend on."""
        rotated = {"no_rope_layers", "no_rope_layer_interval"} if self.unrotated_layers else set()
        return SIZES | WINDOWS[self.window] | set(self.numbers) | set(self.computed) | rotated


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
    # both lists have a number for each pair of a head
    "longrope": (("short_factor", "long_factor", "original_max_position_embeddings"), ()),
}  # fmt: skip
