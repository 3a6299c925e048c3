"""Sizes of the models in the shipped recipes, from their published config.json.

With them a recipe can be checked, and its memory estimated, on a machine without the model. If the
folder exists, it is read instead. Keys are the folders' names, as on Hugging Face.
"""

from __future__ import annotations

from typing import Any


def _qwen2(
    hidden: int, ffn: int, layers: int, heads: int, groups: int, vocab: int, positions: int,
    tied: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen2.5-Math-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936, 4096, True),
    "Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 2, 151936, 32768, True),
    "DeepSeek-R1-Distill-Qwen-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936, 131072, False),
    "Qwen2.5-Math-7B": _qwen2(3584, 18944, 28, 28, 4, 152064, 4096, False),
    "Qwen2.5-7B-Instruct": _qwen2(3584, 18944, 28, 28, 4, 152064, 32768, False),
    "Qwen2.5-32B-Instruct": _qwen2(5120, 27648, 64, 40, 8, 152064, 32768, False),
    "Qwen2.5-72B-Instruct": _qwen2(8192, 29568, 80, 64, 8, 152064, 32768, False),
}
