"""Removes passwords from addresses, in everything that is shown or logged."""

from __future__ import annotations

import re

HIDDEN = "***"  # shown instead of a password
# scheme://user:PASSWORD@host. If there is no @ before the next slash or quote, these may belong to
# the password, as SQLAlchemy reads it, unless a port precedes the slash. Every repetition is
# bounded: otherwise a megabyte without a space would be searched from each letter to its end.
_USER = re.compile(
    r"([a-zA-Z][\w+.-]{0,31}://[^\s/:@'\"]*:)(?:[^\s/'\"]{0,4096}(?=@)|(?!\d{1,5}[/?#])\S{0,4096}(?=@))"
)
# a password given as a parameter of a database's address
_PARAMETER = re.compile(
    r"(?i)([?&;](?:password|passwd|pwd|token|secret|api_key|sslpassword|odbc_connect)=)[^&;\s'\"]+"
)


def redacted(text: str) -> str:
    """The text with the passwords of all addresses in it hidden."""
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}", text))
