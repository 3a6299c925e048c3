"""Checks that a message names fields, files, values and numbers, in any order and with any words
between them."""

import re


def _whole(token: str) -> str:
    """``steps`` is not found in ``warmup_steps`` or ``steps.a``, nor ``1`` in ``1.5``."""
    before = r"(?<![\w.])" if token[0].isalnum() else ""
    return rf"{before}{re.escape(token)}(?!\w|\.\w)"


def naming(*tokens: object) -> str:
    """A pattern for ``pytest.raises(match=...)`` that finds every one of the tokens."""
    return "(?s)" + "".join(f"(?=.*{_whole(str(token))})" for token in tokens)


def assert_names(text: str, *tokens: object) -> None:
    """Assert that the text contains every one of the tokens."""
    missing = [str(token) for token in tokens if not re.search(_whole(str(token)), text)]
    assert not missing, f"{missing} not in: {text}"
