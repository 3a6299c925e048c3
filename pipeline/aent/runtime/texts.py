"""Texts that come from others (models, graders, files), as every reader can take them."""

from __future__ import annotations


def whole(text: str) -> str:
    """The text with U+FFFD for each half of a character (a lone surrogate): UTF-8, and so no file,
    socket or terminal, has those. Two halves that belong together become their character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def visible(text: str) -> str:
    """The text with escapes (``\\x1b``) for what a terminal would obey or cannot show: control
    characters, NUL among them, and halves of characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def encodable(text: str, encoding: str | None) -> str:
    """The text with escapes (``\\u2192``) for characters that ``encoding`` lacks."""
    name = encoding or "utf-8"
    return text.encode(name, "backslashreplace").decode(name)
