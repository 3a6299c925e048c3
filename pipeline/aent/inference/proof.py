"""How an engine shows that it knows the run's token, before it is given it.

Whoever asks sends a challenge with GET /health. The answer to it is an HMAC under the token, of the
challenge and of the address that was asked: a stranger who has come to the address of a dead engine
cannot have another engine of the run answer for it. Both sides import this; it knows neither.
"""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlsplit

CHALLENGE = "x-aent-challenge"  # header of a request: hexadecimal digits
PROOF = "x-aent-proof"  # of the answer to it


def new_challenge() -> str:
    """One that nobody has seen before."""
    return secrets.token_hex(16)


def proof(token: str, host: str, port: int, challenge: str) -> str:
    """What shows whoever knows the token that the server at this address knows it too.

    host: an IP address, as the socket has it that the request came to.
    """
    text = f"{challenge} {host} {port}"
    return hmac.digest(token.encode(), text.encode(), "sha256").hex()


def proves(given: str | None, token: str, url: str, challenge: str) -> bool:
    """Whether an answer's ``PROOF`` is the right one; ``url`` is where the request was sent to."""
    address = urlsplit(url)
    wanted = proof(token, address.hostname or "", address.port or 0, challenge)
    return given is not None and hmac.compare_digest(given.encode(), wanted.encode())
