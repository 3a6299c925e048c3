"""Rotary embeddings with frequencies scaled for longer contexts, as transformers scales them."""

from __future__ import annotations

import torch
from torch import Tensor

from aent.models.decoder import ModelFacts


def scaled_frequencies(facts: ModelFacts, device: torch.device | int) -> tuple[Tensor, float]:
    """[head_dim / 2] fp32 angle per position of each pair, and what cosines and sines are times.

    From transformers' own functions, so that a model is trained as it is read there: ``linear``
    (arXiv 2306.15595), ``dynamic`` (the plain ones up to the model's positions, beyond which no
    recipe goes), ``yarn`` (arXiv 2309.00071) with its attention factor, ``llama3`` (Llama 3.1's,
    for any original length; Megatron's own is for 8192 only).
    """
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=facts.hidden,
        num_attention_heads=facts.heads,
        head_dim=facts.head_dim,
        max_position_embeddings=facts.max_positions,
        rope_parameters=dict(facts.rope),
    )
    return ROPE_INIT_FUNCTIONS[facts.rope["rope_type"]](config, device)
