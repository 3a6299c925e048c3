"""A two-layer Qwen2 with random weights and one token per character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aent.models.bundled.folder import write

# In GPT-2's byte-level alphabet, which writes line break and space this way.
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "ĊĠ" + "".join(chr(c) for c in range(33, 127))
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 32,  # vLLM's CPU attention takes 32, 64, 80, ...
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 1024,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": len(SPECIAL) + len(CHARACTERS),
}
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def make(folder: Path) -> None:
    """Write the model into ``folder``, in float32."""
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    }
    write(folder, CONFIG, _tensors(), _tokenizer(), tokenizer_config)


def _tensors() -> dict[str, np.ndarray]:
    """Seeded weights of about unit gain: logits have a standard deviation of about 1.5.

    With the usual 0.02 the policy would be uniform, the entropy's gradient only rounding, and the
    attention a mean over all tokens. Here attention prefers few tokens, so that responses depend on
    prompts.
    """
    config, random = CONFIG, np.random.default_rng(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def normal(std: float, *shape: int) -> np.ndarray:
        return random.normal(0.0, std, shape).astype(np.float32)

    def linear(outputs: int, inputs: int, gain: float = 1.0) -> np.ndarray:
        return normal(gain * inputs**-0.5, outputs, inputs)

    tensors = {"model.embed_tokens.weight": normal(1.0, config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, rows, gain in (("q", queries, 2.0), ("k", keys, 2.0), ("v", keys, 1.0)):
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = linear(rows, hidden, gain)
            tensors[f"{layer}.self_attn.{name}_proj.bias"] = normal(0.1, rows)
        tensors[f"{layer}.self_attn.o_proj.weight"] = linear(hidden, queries)
        tensors[f"{layer}.mlp.gate_proj.weight"] = linear(inner, hidden)
        tensors[f"{layer}.mlp.up_proj.weight"] = linear(inner, hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = linear(hidden, inner)
        tensors[f"{layer}.input_layernorm.weight"] = 1 + normal(0.1, hidden)
        tensors[f"{layer}.post_attention_layernorm.weight"] = 1 + normal(0.1, hidden)
    tensors["model.norm.weight"] = 1 + normal(0.1, hidden)
    tensors["lm_head.weight"] = linear(config["vocab_size"], hidden, gain=1.5)
    return tensors


def _tokenizer() -> Any:
    """Byte-level BPE without merges: one token per printable ASCII character; others are dropped.

    transformers reads the tokenizer of any Qwen2 model as a Qwen2Tokenizer, which keeps only the
    vocabulary and the merges of tokenizer.json. So this tokenizer is of that kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {t: i for i, t in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    return tokenizer
