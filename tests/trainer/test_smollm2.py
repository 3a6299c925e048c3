"""The bundled SmolLM2, imported into Megatron and exported, against transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aent.layout.parallel import ParallelLayout
from aent.models.model_source import resolve
from aent.recipe.schema import ModelSection
from distributed.ranks import run_ranks
from trainer import formulas, tiny

pytestmark = pytest.mark.slow

LAYOUTS = [(1, 1), (3, 1), (1, 2)]
VOCAB = 49152
BATCH = tiny.mini_batch([(5, 7), (9, 2)], vocab=VOCAB).batch


def whole_logits(trainer: Any) -> np.ndarray | None:
    """[N, V] at the places that predict response tokens, on the last stage."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    def gather(micro_batch: Any, hidden: torch.Tensor) -> tuple:
        policy = trainer.policy
        logits = policy.logits(*policy.head_inputs(hidden, micro_batch.predicts))
        whole = gather_from_tensor_model_parallel_region(logits)
        return hidden.sum(), torch.ones((), dtype=torch.int), (micro_batch.index, whole)

    with torch.no_grad():
        parts = trainer._run(trainer._micro_batches(BATCH), gather, forward_only=True)
    if not parts:
        return None
    index = torch.cat([i for i, _ in parts])
    return torch.cat([w for _, w in parts])[index.argsort()].numpy()


def run(rank: int, _world: int, path: str, folder: str) -> dict[tuple[int, int], Any]:
    from aent.runtime.megatron_cpu import device_mode
    from aent.trainer.trainer import Trainer

    stored = load_file(f"{path}/model.safetensors") if rank == 0 else {}
    out = {}
    for tp, pp in LAYOUTS:
        recipe = tiny.recipe(tp, pp, micro_batch_tokens=13)  # two micro-batches
        with tiny.world(recipe.trainer, rank, folder, f"{tp}-{pp}") as mine:
            if mine:
                trainer = Trainer(recipe, Path(path))
                with device_mode():
                    logits = whole_logits(trainer)
                same = {n: torch.equal(t, stored[n]) for n, t in trainer.export() if t.numel()}
                out[tp, pp] = logits, same
    return out


@pytest.fixture(scope="module")
def model_path() -> Path:
    return resolve(ModelSection(bundled="smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def ranks(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run_ranks(run, 3, str(model_path), str(tmp_path_factory.mktemp("worlds")))


@pytest.fixture(scope="module")
def transformers_logits(model_path: Path) -> np.ndarray:
    with torch.no_grad():
        return formulas.response_logits(formulas.load(model_path), BATCH).numpy()


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_logits_agree_with_transformers(
    ranks: list[dict], transformers_logits: np.ndarray, tp: int, pp: int
) -> None:
    last_stage = ParallelLayout(tensor=tp, pipeline=pp).group("pipeline", 0)[-1]
    logits, _ = ranks[last_stage][tp, pp]
    assert logits.shape == transformers_logits.shape == (9, VOCAB)
    assert np.abs(logits - transformers_logits).max() < 1e-3
    assert np.abs(transformers_logits).max() > 5


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_all_tensors_come_back(ranks: list[dict], tp: int, pp: int) -> None:
    _, same = ranks[0][tp, pp]
    assert len(same) == 272
    assert "lm_head.weight" not in same
    assert all(same.values())
