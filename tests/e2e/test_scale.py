"""A tiny twin of each long recipe of ``recipes/scale/``, trained and resumed: the same sections
and switches, each parallel dimension that it uses with two ranks, and a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from aent.layout.parallel import ParallelLayout
from aent.recipe.load import load
from aent.runtime.environment import data_path
from e2e.jobs import TINY, Job

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(3600)]

SIZES = ("tensor_parallel", "context_parallel", "pipeline_parallel", "data_parallel")
# of the tiny recipe, whose engine is shared; a step of a CPU, and lengths of a character model
TINY_SECTIONS = ("model", "task")
ROLLOUT = ("prompts_per_step", "samples_per_prompt", "max_prompt_tokens", "max_response_tokens")
OTHERS = ("probe_tolerance", "max_logprob_gap")  # float32's, not bfloat16's


def write_twin(name: str, folder: Path) -> Path:
    """The recipe's file with the tiny recipe's model, task and lengths."""
    recipe = yaml.safe_load(data_path(f"recipes/scale/{name}.yaml").read_text())
    tiny = yaml.safe_load(data_path(TINY).read_text())
    recipe |= {section: tiny[section] for section in TINY_SECTIONS}
    rollout, trainer = recipe["rollout"], recipe["trainer"]
    rollout |= {field: tiny["rollout"][field] for field in ROLLOUT}
    for field in (*OTHERS, "engine", "engines"):
        del rollout[field]
    trainer |= {size: 2 for size in SIZES if trainer.get(size, 1) > 1}
    trainer |= {"mini_batches": 2, "micro_batch_tokens": 1024}
    trainer["optimizer"]["lr"] = 1e-3  # so large that a step shows
    recipe |= {"steps": 2, "evaluation": {"every": 0}}
    recipe["checkpoint"] |= {"every": 1}
    (folder / "twin.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "twin.yaml"


def gaps(job: Job) -> list[float]:
    """|log-prob of the engine - of the trainer| of each step."""
    points = map(json.loads, (job.run_dir / "journal.jsonl").read_text().splitlines())
    return [point["value"] for point in points if point.get("key") == "policy/logprob_gap"]


def run_twin(name: str, shared_engine: tuple[str, str], folder: Path) -> None:
    twin = write_twin(name, folder)
    there, small = load(f"recipes/scale/{name}.yaml"), load(twin)
    for field in ("megatron", "ddp", "fused_head", "sequence_parallel"):
        assert getattr(small.trainer, field) == getattr(there.trainer, field)
    assert small.checkpoint.memory_efficient == there.checkpoint.memory_efficient
    layout = ParallelLayout.of(small.trainer)
    job = Job(folder, *shared_engine, recipe=str(twin))
    assert job.wait() == 0, job.text
    assert max(gaps(job)) < 1e-4, gaps(job)
    stages = [weight_names(file) for file in sorted((job.run_dir / "policy").glob("*.safetensors"))]
    assert len(stages) == layout.pipeline
    assert sum(map(len, stages)) == len(set().union(*stages))
    AutoModelForCausalLM.from_pretrained(job.run_dir / "policy")
    again = Job(folder, *shared_engine, "steps=3", "--resume", recipe=str(twin))
    assert again.wait() == 0, again.text
    assert "resumes after 2 steps" in again.text
    assert len(gaps(again)) == 3
    assert max(gaps(again)) < 1e-4, gaps(again)


def weight_names(file: Path) -> set[str]:
    with safe_open(file, "pt") as weights:
        return set(weights.keys())


def test_7b_at_16k(shared_engine: Any, tmp_path: Path) -> None:
    run_twin("7b-16k", shared_engine, tmp_path)


def test_32b_at_32k(shared_engine: Any, tmp_path: Path) -> None:
    run_twin("32b-32k", shared_engine, tmp_path)


def test_72b_at_32k(shared_engine: Any, tmp_path: Path) -> None:
    run_twin("72b-32k", shared_engine, tmp_path)
