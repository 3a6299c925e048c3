"""Writing a bundled model as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    tokenizer: Any,
    tokenizer_config: dict[str, Any],
) -> None:
    """Write config.json, generation_config.json, tokenizer.json, tokenizer_config.json and
    model.safetensors. tokenizer: a ``tokenizers.Tokenizer``."""
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
