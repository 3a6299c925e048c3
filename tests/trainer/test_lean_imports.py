"""What a rank imports, and what it leaves out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aent.models import model_source, tokenizer
from aent.recipe.schema import ModelSection
from aent.runtime.environment import device_kind
from distributed.ranks import run_ranks
from trainer import tiny


def imported(rank: int, world: int, path: str) -> set[str]:
    """The modules of a process that has built a trainer and loaded a tokenizer."""
    from aent.trainer.trainer import Trainer

    recipe = tiny.recipe()
    with tiny.world(recipe.trainer, rank, str(Path(path).parent), "world"):
        Trainer(recipe, Path(path))
    bundled = ModelSection(bundled="tiny-qwen2")
    assert tokenizer.load(bundled, model_source.resolve(bundled)).encode("1 + 1")
    return set(sys.modules)


@pytest.mark.slow
def test_a_rank_imports_no_other_family_and_no_tracker(tmp_path: Path) -> None:
    (names,) = run_ranks(imported, 1, str(tiny.write_model(tmp_path / "model", tied=True)))
    assert {"megatron.core", "mbridge.core.llm_bridge"} <= names
    assert not {n for n in names if n.startswith("mbridge.models")}
    assert not names & {"wandb", "sklearn", "mlflow", "vllm", "lightning"}
    assert device_kind() == "cuda" or "torch._inductor.lowering" not in names
