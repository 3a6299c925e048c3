"""A small random Qwen2, its recipe, one mini-batch and worlds of ranks for the trainer's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM

from aent.algorithm import aggregation
from aent.algorithm.terms import LossTerms, MiniBatch
from aent.data.batch import Batch
from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe

VOCAB = 97  # odd: padded to 98 for two tensor-parallel ranks


def write_model(
    path: Path, tied: bool, seed: int = 0, vocab: int = VOCAB, ffn: int = 192, heads: int = 4
) -> Path:
    """Two layers, weights large enough that the policy is far from uniform."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=ffn,
        num_hidden_layers=2,
        num_attention_heads=heads,
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
        "trainer": trainer,
    }
    return Recipe.model_validate(values | sections)


def mini_batch(lengths: list[tuple[int, int]], seed: int = 1, vocab: int = VOCAB) -> MiniBatch:
    """Sequences of (prompt, response) tokens with the terms that every mini-batch has."""
    g = torch.Generator().manual_seed(seed)
    count, total = len(lengths), sum(p + r for p, r in lengths)
    mask = torch.cat([torch.arange(p + r) >= p for p, r in lengths])
    batch = Batch(
        tokens=torch.randint(0, vocab, (total,), generator=g),
        loss_mask=mask,
        behaviour_logprobs=torch.where(mask, -4 * torch.rand(total, generator=g), 0.0),
        versions=torch.where(mask, 0, -1),
        lengths=torch.tensor([p + r for p, r in lengths]),
        group=torch.arange(count) // 2,
        reward=torch.zeros(count),
        truncated=torch.zeros(count, dtype=torch.bool),
        item=torch.arange(count),
        rerolled=torch.zeros(count, dtype=torch.bool),
        temperature=0.8,
    )
    per_sequence = torch.randn(count, generator=g)
    terms = LossTerms(
        advantages=torch.where(mask, per_sequence[batch.sequence_of_token], 0.0),
        policy_weight=aggregation.sequence_mean(batch),
        entropy_weight=aggregation.token_mean(batch),
    )
    return MiniBatch(batch, terms)


def with_terms(mini_batch: MiniBatch, **terms: Any) -> MiniBatch:
    """The same samples with other terms."""
    return replace(mini_batch, terms=replace(mini_batch.terms, **terms))


def grouped_batch() -> MiniBatch:
    """Six responses to three prompts: three, one and two of them."""
    made = mini_batch([(5, 4), (5, 1), (5, 7), (3, 6), (9, 2), (9, 5)], seed=3)
    batch = replace(made.batch, group=torch.tensor([0, 0, 0, 1, 2, 2]))
    starts = batch.cu_seqlens.tolist()
    for first, others in ((0, (1, 2)), (4, (5,))):
        prompt = int((~batch.loss_mask[starts[first] : starts[first + 1]]).sum())
        for s in others:
            copied = batch.tokens[starts[first] : starts[first] + prompt]
            batch.tokens[starts[s] : starts[s] + prompt] = copied
    return MiniBatch(batch, made.terms)


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
