"""Tiny Qwen2 models as folders, and their log-probs by transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 256
MAX_LENGTH = 320


def make(seed: int, tied: bool = False) -> Qwen2ForCausalLM:
    """A randomly initialized model whose policy is far from uniform."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,  # 4 heads of 32: vLLM on a CPU takes few head sizes
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).float().eval()


def save(model: Qwen2ForCausalLM, folder: Path) -> Path:
    """Write the folder, with sampling settings in it that the server must not take over."""
    model.save_pretrained(folder)
    trap = {"do_sample": True, "top_k": 1, "temperature": 0.3, "repetition_penalty": 2.0}
    (folder / "generation_config.json").write_text(json.dumps(trap))
    return folder


def store_head(folder: Path) -> None:
    """Store a tied head beside the embedding that it is."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})


def named_tensors(model: Qwen2ForCausalLM) -> dict[str, Tensor]:
    """What an export of the model yields: a tied head is not among it."""
    tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


@torch.no_grad()
def logprobs(
    model: Qwen2ForCausalLM, prompt: Sequence[int], response: Sequence[int], temperature: float = 1
) -> list[float]:
    """The tempered log-prob of each response token, by transformers."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    chosen = torch.tensor(response)[:, None]
    return torch.log_softmax(logits, -1).gather(1, chosen)[:, 0].tolist()


def gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest absolute difference."""
    assert len(ours) == len(theirs)
    return max(abs(a - b) for a, b in zip(ours, theirs))
