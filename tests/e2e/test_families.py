"""A tiny model of every family in a whole run: vLLM samples, the trainer learns, the new weights
are pushed and probed, and both agree on what a token's probability is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aent.models.bundled import tiny_qwen2
from aent.models.families import FAMILIES
from aent.models.model_source import resolve
from aent.recipe.schema import ModelSection

pytestmark = [pytest.mark.slow, pytest.mark.full]

SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id",
}  # fmt: skip
WINDOW = {"sliding_window": 32}  # below the prompts' lengths
GEMMA = WINDOW | {"head_dim": 32, "query_pre_attn_scalar": 24}
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": WINDOW,
    "phi3": {},
    "qwen2": WINDOW | {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "smollm3": {"no_rope_layer_interval": 2},
    "olmo2": {},
    "gemma2": GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0},
    "gemma3_text": GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    "granite": {
        "embedding_multiplier": 6.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
    },
}  # fmt: skip


def write_model(folder: Path, model_type: str) -> Path:
    """With the tokenizer of tiny-qwen2."""
    torch.manual_seed(0)
    sizes = {name: value for name, value in tiny_qwen2.CONFIG.items() if name in SIZES}
    config = AutoConfig.for_model(model_type, **sizes | CHANGES[model_type])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    tiny = resolve(ModelSection(bundled="tiny-qwen2"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    return folder


@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_steps(tmp_path: Path, start_job: Any, model_type: str) -> None:
    model = write_model(tmp_path / "model", model_type)
    # two ranks: every layout of every family is in models/test_parity.py
    one_stage = "trainer.pipeline_parallel=1"
    job = start_job(f"model={{path: {model}}}", "steps=2", "task.heldout=0", one_stage)
    assert job.wait() == 0, job.text
    assert (job.run_dir / "policy" / "config.json").is_file()
    points = map(json.loads, (job.run_dir / "journal.jsonl").read_text().splitlines())
    gaps = [point["value"] for point in points if point.get("key") == "policy/logprob_gap"]
    assert len(gaps) == 2  # the first with the folder's weights, the second with what was pushed
    assert max(gaps) < 1e-4, gaps
