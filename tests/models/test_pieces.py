"""Texts of single tokens, by a byte-level tokenizer: a letter may be two of them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers

from aent.models.pieces import Pieces
from aent.models.tokenizer import Tokenizer


@pytest.fixture
def inner() -> Inner:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {letter: i for i, letter in enumerate(alphabet, start=1)}
    vocabulary["Ġ7"] = len(vocabulary)
    made = Inner(models.BPE(vocab=vocabulary, merges=[("Ġ", "7")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


@pytest.fixture
def pieces(inner: Inner) -> Pieces:
    return Pieces(
        Tokenizer(
            encode=lambda text: inner.encode(text).ids,
            decode=lambda ids: inner.decode(list(ids)),
            stop_ids=(0,),
            template=None,
            bos_ids=(),
        )
    )


def test_pieces_make_the_text(inner: Inner, pieces: Pieces) -> None:
    text = "né 7\n€."
    ids = [*inner.encode(text).ids, 0]
    assert len(ids) == 1 + 2 + 1 + 1 + 3 + 1 + 1
    assert pieces.of(ids) == ["n", "é", "", " 7", "\n", "€", "", "", ".", ""]
    assert pieces.of([]) == []


def test_a_character_that_is_cut_off_is_one_piece(inner: Inner, pieces: Pieces) -> None:
    first = inner.encode("é").ids[0]
    assert pieces.of([first]) == ["\N{REPLACEMENT CHARACTER}"]


def test_classes(inner: Inner, pieces: Pieces) -> None:
    for text, wanted in (("x", "words"), (" 7", "digits"), ("=", "punctuation"), ("\n", "space")):
        (token,) = inner.encode(text).ids
        assert pieces.token_class(token) == wanted
    assert pieces.token_class(0) == "special"
    assert {pieces.token_class(token) for token in inner.encode("é").ids} == {"words"}
