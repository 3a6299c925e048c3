"""Token ids beyond the embedding, in each kind of file that names tokens."""

import json

import pytest

from aent.models.model_source import resolve
from aent.models.vocabulary import tokenizer_faults
from aent.recipe.schema import ModelSection
from wording import assert_names


def section(folder, **changes):
    return ModelSection(path=str(folder), **changes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "wide": 97}}}),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.0]] * 97 + [["wide", -1.0]]}}),
        ("tokenizer.json", {"model": {}, "added_tokens": [{"content": "wide", "id": 97}]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"97": {"content": "wide"}}}),
        ("added_tokens.json", {"wide": 97}),
        ("vocab.json", {"a": 0, "wide": 97}),
    ],
)
def test_an_id_beyond_the_embedding_is_named_with_both_sizes(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    if name not in ("tokenizer.json", "vocab.json"):
        (tmp_path / "vocab.json").write_text("{}")
    assert tokenizer_faults(section(tmp_path), 98) == []
    (fault,) = tokenizer_faults(section(tmp_path), 97)
    assert_names(fault, "model.path", tmp_path / name, "'wide'", "id 97", "97 rows")
    elsewhere = section(tmp_path / "model", tokenizer_path=str(tmp_path))
    (fault,) = tokenizer_faults(elsewhere, 97)
    assert_names(fault, "model.tokenizer_path")


def test_a_special_token_that_no_prompt_has_needs_no_row(tmp_path):
    # as in google/gemma-3-1b-it, where it is <image_soft_token> with the id 262144 of 262144 rows
    image = {"content": "<image>", "special": True}
    files = {
        "tokenizer.json": {"model": {"vocab": {"a": 0}}, "added_tokens": [image | {"id": 97}]},
        "added_tokens.json": {"<image>": 97},
        "tokenizer_config.json": {
            "added_tokens_decoder": {"97": image},
            "chat_template": "{{ messages[0]['content'] }}",
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert tokenizer_faults(section(tmp_path), 97) == []
    (tmp_path / "chat_template.jinja").write_text("<image>{{ messages[0]['content'] }}")
    (fault,) = tokenizer_faults(section(tmp_path), 97)
    assert_names(fault, "model.path", "'<image>'", "id 97", "97 rows")


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("huggingface", "tokenizer.json"),
        ("sentencepiece", "tokenizer.model"),
        ("tiktoken", "tokenizer.json"),
    ],
)
def test_a_folder_without_a_tokenizer(tmp_path, library, name):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (fault,) = tokenizer_faults(section(tmp_path, tokenizer_library=library), 97)
    assert_names(fault, "model.path", tmp_path, name)
    (tmp_path / name).write_text("{}")
    assert tokenizer_faults(section(tmp_path, tokenizer_library=library), 97) == []
    alone = section(tmp_path, tokenizer_library=library, tokenizer_path=str(tmp_path / name))
    assert library == "huggingface" or tokenizer_faults(alone, 97) == []


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    (fault,) = tokenizer_faults(section(tmp_path), 97)
    assert_names(fault, "model.path", tmp_path, "tokenizer")


def test_a_bundled_model_has_as_many_tokens_as_rows():
    folder = resolve(ModelSection(bundled="tiny-qwen2"))
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert tokenizer_faults(section(folder), rows) == []
    assert len(tokenizer_faults(section(folder), rows - 1)) == 1
