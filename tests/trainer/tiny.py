"""A small random Qwen2, its recipe, one mini-batch and worlds of ranks for the trainer's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM

from aent.algorithm import aggregation
from aent.data.batch import Batch
from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe

VOCAB = 97  # odd: padded to 98 for two tensor-parallel ranks


def write_model(path: Path, tied: bool, seed: int = 0, vocab: int = VOCAB) -> Path:
    """Two layers, weights large enough that the policy is far from uniform."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)
    model.save_pretrained(path)
    return path


def recipe(
    tp: int = 1, pp: int = 1, dp: int = 1, micro_batch_tokens: int = 64, **sections: Any
) -> Recipe:
    trainer = {
        "tensor_parallel": tp,
        "pipeline_parallel": pp,
        "data_parallel": dp,
        "micro_batch_tokens": micro_batch_tokens,
        "optimizer": {"implementation": "torch", "lr": 1e-3},
    }
    for key, value in sections.pop("trainer", {}).items():
        trainer[key] = {**trainer.get(key, {}), **value} if isinstance(value, dict) else value  # type: ignore[dict-item]
    values = {
        "name": "tiny",
        "model": {"path": "unused"},
        "controller": {"initial": 0.0},
        "rollout": {"temperature": 0.8},
        "trainer": trainer,
    }
    return Recipe.model_validate(values | sections)


def mini_batch(lengths: list[tuple[int, int]], seed: int = 1, vocab: int = VOCAB) -> Batch:
    """Sequences of (prompt, response) tokens with everything a mini-batch carries."""
    g = torch.Generator().manual_seed(seed)
    total = sum(p + r for p, r in lengths)
    mask = torch.cat([torch.arange(p + r) >= p for p, r in lengths])
    sizes = torch.tensor([p + r for p, r in lengths])
    batch = Batch(
        tokens=torch.randint(0, vocab, (total,), generator=g),
        cu_seqlens=torch.nn.functional.pad(sizes.cumsum(0), (1, 0)),
        loss_mask=mask,
        behaviour_logprobs=torch.where(mask, -4 * torch.rand(total, generator=g), 0.0),
        versions=torch.where(mask, 0, -1),
        group=torch.arange(len(lengths)) // 2,
        reward=torch.zeros(len(lengths)),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
    )
    per_sequence = torch.randn(len(lengths), generator=g)
    batch.advantages = torch.where(mask, per_sequence[batch.sequence_of_token], 0.0)
    batch.policy_weight = aggregation.sequence_mean(batch)
    batch.entropy_weight = aggregation.token_mean(batch)
    return batch


def grouped_batch() -> Batch:
    """Six responses to three prompts: three, one and two of them."""
    batch = mini_batch([(5, 4), (5, 1), (5, 7), (3, 6), (9, 2), (9, 5)], seed=3)
    batch.group = torch.tensor([0, 0, 0, 1, 2, 2])
    starts = batch.cu_seqlens.tolist()
    for first, others in ((0, (1, 2)), (4, (5,))):
        prompt = int((~batch.loss_mask[starts[first] : starts[first + 1]]).sum())
        for s in others:
            copied = batch.tokens[starts[first] : starts[first] + prompt]
            batch.tokens[starts[s] : starts[s] + prompt] = copied
    return batch


RAGGED = [(3, 9), (11, 2), (5, 17), (1, 1), (8, 8), (2, 21), (6, 5)]


@contextmanager
def world(settings: Any, rank: int, folder: str, name: str) -> Iterator[bool]:
    """A job of the first tensor x pipeline x data ranks of those spawned, one after another in the
    same processes (importing Megatron takes longer than most tests). False on the other ranks."""
    from aent.runtime import distributed

    if dist.is_initialized():
        dist.destroy_process_group()
    size = ParallelLayout.of(settings).num_ranks
    if rank >= size:
        yield False
        return
    os.environ["WORLD_SIZE"] = str(size)
    store = dist.FileStore(f"{folder}/{name}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    distributed.initialize(settings, seed=0)
    try:
        yield True
    finally:
        distributed.shutdown()
