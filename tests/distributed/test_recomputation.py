"""Recomputed activations: the same gradient, bit for bit, of fewer tensors kept. SwiGLU in one
function: the same to rounding, of fewer tensors too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aent.trainer.trainer import Trainer
from distributed.ranks import run_ranks
from trainer import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NONE: dict[str, Any] = {}
FULL = {"recompute_granularity": "full", "recompute_num_layers": 1}
WAYS = (
    NONE,
    FULL | {"recompute_method": "uniform"},
    FULL | {"recompute_method": "block"},
    {"recompute_granularity": "selective"},
    {"bias_activation_fusion": True},  # no recomputation, but SwiGLU in one function
)


@dataclass
class Kept:
    """Bytes that autograd holds for the backward."""

    now: int = 0
    most: int = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.now += tensor.numel() * tensor.element_size()
        self.most = max(self.most, self.now)
        return tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.now -= tensor.numel() * tensor.element_size()
        return tensor


def gradients(rank: int, world: int, folder: str) -> list[tuple[Any, ...]]:
    """For each way: loss, gradient norm, the bytes of the gradients, and of what was kept."""
    results = []
    for number, megatron in enumerate(WAYS):
        recipe = tiny.recipe(2, trainer={"megatron": megatron, "sequence_parallel": True})
        with tiny.world(recipe.trainer, rank, folder, str(number)):
            trainer, kept = Trainer(recipe, Path(folder) / "model"), Kept()
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
                done = trainer.train_minibatch(tiny.mini_batch(tiny.RAGGED, seed=5), 0.5)
            flat = torch.cat([p.main_grad.flatten() for p in trainer.policy.parameters()])
            results.append((done.loss, done.grad_norm, flat.numpy().tobytes(), kept.most))
    return results


def test_recomputation_changes_what_is_kept_and_nothing_else(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "model", tied=True)
    for results in run_ranks(gradients, 2, str(tmp_path)):
        plain, uniform, block, selective, fused = results
        assert uniform[:3] == block[:3] == selective[:3] == plain[:3]
        assert uniform[3] < 0.8 * plain[3]
        assert uniform[3] <= block[3] < plain[3]
        assert fused[:2] == pytest.approx(plain[:2], rel=1e-5)
        first, other = (np.frombuffer(each[2], np.float32) for each in (plain, fused))
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)
        assert fused[3] < plain[3]
