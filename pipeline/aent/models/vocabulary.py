"""Token ids in a tokenizer's files, without loading it. No id that a prompt can have may be beyond
the model's embedding: with tensor parallelism such a token would be trained on as zeros."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent.models import chat
from aent.recipe.schema import ModelSection

# any of these is a Hugging Face tokenizer's vocabulary
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


@dataclass(frozen=True)
class _Entry:
    """One token in one file."""

    id: int
    token: str
    file: Path
    special: bool  # this file marks it so


def tokenizer_faults(section: ModelSection, vocab: int) -> list[str]:
    """One sentence if the tokenizer of the recipe's model does not exist, cannot be read, or has
    ids of ``vocab`` and above.

    A special token may be above, unless the chat template writes it: Gemma 3's tokenizer has one
    for images, for which its text models have no row. No text becomes such a token unless it spells
    it, and then it is refused (``tokenizer.Tokenizer.chat_prompt``).

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
        entries = list(_entries(folder))
        beyond = [entry for entry in entries if entry.id >= vocab]
        template = chat.find(folder) if beyond else None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return [f"{field}: the tokenizer in {folder} cannot be read: {error}"]
    written = "" if template is None else template.text
    unused = {e.token for e in entries if e.special and e.token not in written}
    beyond = [entry for entry in beyond if entry.token not in unused]
    if not beyond:
        return []
    worst = max(beyond, key=lambda entry: entry.id)
    return [
        f"{field}: {worst.file} has the token {worst.token!r} with the id {worst.id}, and the "
        f"model's embedding has {vocab} rows: resize the embedding, or use the tokenizer that "
        "belongs to the model"
    ]


def _missing(folder: Path, library: str) -> str | None:
    """The name of the tokenizer's required file, if it is missing."""
    if library == "huggingface":
        there = any(any(folder.glob(pattern)) for pattern in VOCABULARIES)
        return None if there else ", ".join(VOCABULARIES)
    name = {"sentencepiece": "tokenizer.model", "tiktoken": "tokenizer.json"}[library]
    return None if folder.is_file() or (folder / name).is_file() else name


def _entries(folder: Path) -> Iterator[_Entry]:
    """Every token that the files name."""
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            for token, number, special in _named(name, json.loads(file.read_text())):
                yield _Entry(number, token, file, special)


def _named(name: str, content: Any) -> Iterator[tuple[str, int, bool]]:
    """(token, id, whether it is marked as special) in the content of a file of this name."""
    if name == "tokenizer.json":
        vocabulary = content.get("model", {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram: (token, score) in the order of ids
            vocabulary = {token: number for number, (token, *_) in enumerate(vocabulary)}
        yield from ((token, number, False) for token, number in vocabulary.items())
        for added in content.get("added_tokens") or ():
            yield added["content"], added["id"], bool(added.get("special"))
    elif name == "tokenizer_config.json":
        for number, added in (content.get("added_tokens_decoder") or {}).items():
            yield added["content"], int(number), bool(added.get("special"))
    else:
        yield from ((token, number, False) for token, number in content.items())
