"""Addresses without their passwords, for everything that a person or a log shows."""

from __future__ import annotations

import re

HIDDEN = "***"  # in the place of a password
# scheme://user:PASSWORD@host; where there is no @ before the next slash or quote, these may be the
# password's own, as SQLAlchemy takes them, unless what stands before the slash is a port. All is
# bounded: a megabyte without a space would be looked through from each letter to its end
_USER = re.compile(
    r"([a-zA-Z][\w+.-]{0,31}://[^\s/:@'\"]*:)(?:[^\s/'\"]{0,4096}(?=@)|(?!\d{1,5}[/?#])\S{0,4096}(?=@))"
)
# as a parameter of a database's address
_PARAMETER = re.compile(
    r"(?i)([?&;](?:password|passwd|pwd|token|secret|api_key|sslpassword|odbc_connect)=)[^&;\s'\"]+"
)


def redacted(text: str) -> str:
    """The text with the passwords of all addresses in it hidden."""
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}", text))
