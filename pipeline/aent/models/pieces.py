"""The text of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from aent.models.tokenizer import Tokenizer

TokenClass = Literal["words", "digits", "punctuation", "space", "special"]
CLASSES: tuple[TokenClass, ...] = ("words", "digits", "punctuation", "space", "special")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # a decoder's output for a part of a character


@dataclass
class Pieces:
    """The text that each token adds. Each token of the vocabulary is decoded once, after an anchor
    token, because some tokenizers drop the leading space of a single token."""

    tokenizer: Tokenizer
    _anchor: list[int] = field(init=False)
    _known: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._anchor = self.tokenizer.encode("a")

    def of(self, ids: Sequence[int]) -> list[str]:
        """A text for each token; '' for a special one. A character made of several tokens belongs
        to the first of them; the others have ''."""
        pieces = [self._piece(token) for token in ids]
        first = 0
        while first < len(ids):
            end = first
            while end < len(ids) and UNFINISHED in pieces[end]:
                end += 1
            if end > first + 1:
                pieces[first:end] = [self._behind_anchor(ids[first:end])] + [""] * (end - first - 1)
            first = max(end, first + 1)
        return pieces

    def token_class(self, token: int) -> TokenClass:
        """The token's class, by its first character that is not a space; ``special``: no text."""
        text = self._piece(token)
        first = text.strip()[:1]
        if not first:
            return "space" if text else "special"
        if first.isdigit():
            return "digits"
        # a part of a character: all that is known is that it is not ASCII
        return "words" if first.isalpha() or first == UNFINISHED else "punctuation"

    def _piece(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._behind_anchor([token])
        return self._known[token]

    def _behind_anchor(self, ids: Sequence[int]) -> str:
        before, text = (self.tokenizer.decode(x) for x in (self._anchor, [*self._anchor, *ids]))
        return text[len(before) :] if text.startswith(before) else self.tokenizer.decode(list(ids))
