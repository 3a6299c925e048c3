"""The largest token id in a tokenizer's files, without loading it. No id may be beyond the model's
embedding: with tensor parallelism such a token would be trained on as zeros."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aent.recipe.schema import ModelSection

# any of these is a Hugging Face tokenizer's vocabulary
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def tokenizer_faults(section: ModelSection, vocab: int) -> list[str]:
    """One sentence if the tokenizer of the recipe's model does not exist, cannot be read, or has
    ids of ``vocab`` and above.

    It reads the files of a Hugging Face tokenizer (tokenizer.json, vocab.json, added_tokens.json,
    tokenizer_config.json); ``aent.models.tokenizer`` reads other kinds.
    """
    place = section.tokenizer_path or section.path
    if place is None:
        return []
    field = "model.path" if section.tokenizer_path is None else "model.tokenizer_path"
    folder = Path(place).expanduser()
    if (missing := _missing(folder, section.tokenizer_library)) is not None:
        return [f"{field}: {folder} has no tokenizer ({missing})"]
    if section.tokenizer_library != "huggingface":
        return []
    try:
        largest, token, file = max(_ids(folder), default=(-1, "", folder))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return [f"{field}: the tokenizer in {folder} cannot be read: {error}"]
    if largest < vocab:
        return []
    return [
        f"{field}: {file} has the token {token!r} with the id {largest}, and the model's embedding "
        f"has {vocab} rows: resize the embedding, or use the tokenizer that belongs to the model"
    ]


def _missing(folder: Path, library: str) -> str | None:
    """The name of the tokenizer's required file, if it is missing."""
    if library == "huggingface":
        there = any(any(folder.glob(pattern)) for pattern in VOCABULARIES)
        return None if there else ", ".join(VOCABULARIES)
    name = {"sentencepiece": "tokenizer.model", "tiktoken": "tokenizer.json"}[library]
    return None if folder.is_file() or (folder / name).is_file() else name


def _ids(folder: Path) -> Iterable[tuple[int, str, Path]]:
    """(id, token, file) of every token that the files name."""
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            for token, number in _entries(name, json.loads(file.read_text())):
                yield number, token, file


def _entries(name: str, content: Any) -> Iterable[tuple[str, int]]:
    if name == "tokenizer.json":
        vocabulary = content.get("model", {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram: (token, score) in the order of ids
            yield from ((token, number) for number, (token, *_) in enumerate(vocabulary))
        else:
            yield from vocabulary.items()
        yield from ((t["content"], t["id"]) for t in content.get("added_tokens") or ())
    elif name == "tokenizer_config.json":
        added = content.get("added_tokens_decoder") or {}
        yield from ((t["content"], int(number)) for number, t in added.items())
    else:
        yield from content.items()
