"""What checks, estimates and the trainer know about a recipe's model without loading it."""

from __future__ import annotations

import json
from pathlib import Path

from aent.models.config_json import ModelError, read
from aent.models.decoder import ModelFacts
from aent.models.model_source import hf_config
from aent.models.published import PUBLISHED
from aent.recipe.schema import ModelSection


def is_published(model: ModelSection) -> bool:
    """Whether the model is not here and its published sizes are used."""
    if model.path is None:
        return False
    folder = Path(model.path).expanduser()
    return folder.name in PUBLISHED and not folder.exists()


def is_here(model: ModelSection) -> bool:
    """Whether the model is bundled, or its folder has a config.json."""
    return model.path is None or (Path(model.path).expanduser() / "config.json").is_file()


def are_known(model: ModelSection) -> bool:
    """Whether the model's facts can be read from anything."""
    return is_here(model) or is_published(model)


def model_facts(model: ModelSection) -> ModelFacts:
    """Facts of the recipe's model: from its folder; of a bundled model, created or not; or, if
    there is no such folder, of a published model with that name (``models.published``).

    Raises:
        ModelError: with one sentence for each file and field that is missing, wrong or unknown.
    """
    where = str(Path(model.path, "config.json")) if model.path is not None else str(model.bundled)
    try:
        published = is_published(model)
        config = PUBLISHED[Path(str(model.path)).name] if published else hf_config(model)
    except json.JSONDecodeError as error:
        raise ModelError([f"{where} is not valid JSON: {error}"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError([f"{where} cannot be read: {error}"]) from error
    return read(config, where)


def folder_facts(folder: Path) -> ModelFacts:
    """``model_facts`` of a Hugging Face folder."""
    return model_facts(ModelSection(path=str(folder)))


def max_positions(model: ModelSection) -> int:
    """Most tokens of a prompt and its response together, for a model of any family.

    Raises ValueError if config.json does not say.
    """
    value = hf_config(model).get("max_position_embeddings")
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{model.path}/config.json: max_position_embeddings must be a positive whole number, "
            f"got {value!r}"
        )
    return value
