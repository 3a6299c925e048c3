"""Rotary embeddings (arXiv 2104.09864), scaled for longer contexts as in transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aent.models.decoder import ModelFacts


@dataclass(frozen=True)
class Rotary:
    """One rotary embedding."""

    frequencies: Tensor  # [head_dim / 2] fp32: angle per position of each pair
    scale: float  # factor of cosines and sines: YaRN's attention factor

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, head_dim] for positions [T]."""
        angles = torch.outer(positions.float(), self.frequencies)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def rotary(rope: dict[str, Any], facts: ModelFacts, device: torch.device | int) -> Rotary:
    """One of ``facts.ropes``.

    It uses transformers' own functions, so that a model is computed in the same way: ``linear``
    (arXiv 2306.15595), ``dynamic`` (plain frequencies up to the model's positions, which no recipe
    exceeds), ``yarn`` (arXiv 2309.00071) with its attention factor, ``llama3`` (Llama 3.1's, for
    any original length; Megatron's own is only for 8192), ``longrope`` (arXiv 2402.13753, with the
    factors of short sequences: ``ModelFacts.longest``).
    """
    if rope["rope_type"] == "default":
        pairs = torch.arange(0, facts.head_dim, 2, dtype=torch.float32, device=device)
        return Rotary(1.0 / (rope["rope_theta"] ** (pairs / facts.head_dim)), 1.0)
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=facts.hidden,
        num_attention_heads=facts.heads,
        head_dim=facts.head_dim,
        max_position_embeddings=facts.max_positions,
        rope_parameters=dict(rope),
    )
    return Rotary(*ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, heads, d] by ``Rotary``'s cosines and sines, halves layout."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-second, first), dim=-1), sin)
