"""Gradients reduced, and parameters gathered, while the next ones are computed: the same update.

To rounding: a norm is summed over other shards of the parameters.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aent.recipe.schema import Recipe
from aent.trainer.trainer import Trainer
from distributed.ranks import run_ranks
from trainer import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 20_000}
STEPS = 3  # DDP takes the first one to learn which gradients to wait for


def updates(recipe: Recipe, folder: str, lengths: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Some updates' loss and norm, scores after them, the policy's weights."""
    trainer = Trainer(recipe, Path(folder) / "model")
    seen = []
    for step in range(STEPS):
        done = trainer.train_minibatch(tiny.mini_batch(lengths, seed=step), 0.5)
        seen.append(torch.tensor([done.loss, done.grad_norm]))
    seen += [value.clone() for _, value in trainer.export()]
    return [*seen, trainer.score(tiny.mini_batch(lengths, seed=9).batch)]


def compare(rank: int, world: int, folder: str, tied: bool, fused: bool, layout: dict) -> None:
    settings = {"fused_head": fused, "optimizer": {"distributed": True}, "micro_batch_tokens": 24}
    # of the second run's steps one rank has no work in its last micro-batch
    for number, lengths in enumerate((tiny.RAGGED, [(3, 9), (5, 17), (11, 8)])):
        results = []
        for way, ddp in enumerate(({}, OVERLAP)):
            recipe = tiny.recipe(**layout, trainer=settings | {"ddp": ddp})
            with tiny.world(recipe.trainer, rank, folder, f"{number}-{way}"):
                results.append(updates(recipe, folder, lengths))
        for plain, overlapped in zip(*results, strict=True):
            torch.testing.assert_close(overlapped, plain, rtol=1e-4, atol=1e-5)  # of 1e-3


DP, PP = {"dp": 2}, {"pp": 2, "dp": 2}


@pytest.mark.parametrize(
    ("tied", "fused", "layout"),
    [
        pytest.param(True, True, DP, id="tied-fused-dp2"),
        pytest.param(False, True, PP, id="untied-fused-pp2-dp2"),
        pytest.param(True, True, PP, id="tied-fused-pp2-dp2", marks=pytest.mark.full),
        pytest.param(False, False, DP, id="untied-logits-dp2", marks=pytest.mark.full),
    ],
)
def test_overlap_changes_nothing(tmp_path: Path, tied: bool, fused: bool, layout: dict) -> None:
    tiny.write_model(tmp_path / "model", tied=tied)
    ranks = layout.get("pp", 1) * layout["dp"]
    run_ranks(compare, ranks, str(tmp_path), tied, fused, layout)
