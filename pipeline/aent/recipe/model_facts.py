"""What a check and an estimate must know of a model, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent.model_source import hf_config
from aent.recipe.published import PUBLISHED
from aent.recipe.schema import ModelSection


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder with grouped-query attention and a gated feed-forward (Llama, Qwen2)."""

    model_type: str  # Hugging Face's name of the architecture
    layers: int
    hidden: int
    ffn: int  # width of the feed-forward, gate and up each
    heads: int
    kv_groups: int
    head_dim: int
    vocab: int
    max_positions: int
    tied_embeddings: bool

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: attention, gated feed-forward, two norms (biases neglected)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_groups)
        return attention + 3 * self.hidden * self.ffn + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the model; a tied output layer counts once."""
        tables = 1 if self.tied_embeddings else 2
        return (
            self.layers * self.layer_parameters + tables * self.embedding_parameters + self.hidden
        )

    def stage_layers(self, stages: int) -> list[int]:
        """Layers of each pipeline stage, so that all take equally long.

        The last one has the output layer too, on response tokens only: taken as half of all tokens
        and weighed in layers by its multiplications. The others have equal shares (Megatron's
        num_layers_in_last_pipeline_stage), so there may be one stage for every layer at most.
        """
        if stages == 1:
            return [self.layers]
        projections = self.layer_parameters - 2 * self.hidden  # without the norms
        head = self.embedding_parameters / 2 / projections
        ideal = (self.layers + head) / stages - head
        choices = [n for n in range(1, self.layers) if (self.layers - n) % (stages - 1) == 0]
        last = min(choices, key=lambda n: abs(n - ideal))
        return [(self.layers - last) // (stages - 1)] * (stages - 1) + [last]


def is_published(model: ModelSection) -> bool:
    """Whether the model is not here, and its sizes are those that were published for its name."""
    if model.path is None:
        return False
    folder = Path(model.path).expanduser()
    return folder.name in PUBLISHED and not folder.exists()


def are_known(model: ModelSection) -> bool:
    """Whether there is anything to read the model's facts from."""
    path = model.path
    here = path is None or (Path(path).expanduser() / "config.json").is_file()
    return here or is_published(model)


def model_facts(model: ModelSection) -> ModelFacts:
    """Facts of the recipe's model: of its folder; of a bundled one, made or not; of a published one
    (``recipe.published``) by its folder's name, where there is no such folder.

    Raises:
        ValueError: one sentence naming the file and field that is missing or wrong.
    """
    where = str(Path(model.path, "config.json")) if model.path is not None else str(model.bundled)
    try:
        published = is_published(model)
        config = PUBLISHED[Path(str(model.path)).name] if published else hf_config(model)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where} is not a JSON object")

    def size(name: str, default: Any = None) -> int:
        value = config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{where}: {name} must be a positive whole number, got {value!r}")
        return value

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    return ModelFacts(
        model_type=str(config.get("model_type", "unknown")),
        layers=size("num_hidden_layers"),
        hidden=hidden,
        ffn=size("intermediate_size"),
        heads=heads,
        kv_groups=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        vocab=size("vocab_size"),
        max_positions=size("max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
