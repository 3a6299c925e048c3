"""How an engine proves that it knows the run's token, before it gets it.

The client sends a challenge with GET /health. The answer has an HMAC, with the token as key, of the
challenge and of the address that was asked, so that a stranger at the address of a dead engine
cannot have another engine of the run answer for it. Both sides import this; it imports neither.
"""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlsplit

CHALLENGE = "x-aent-challenge"  # header of a request: hexadecimal digits
PROOF = "x-aent-proof"  # of the answer to it


def new_challenge() -> str:
    """A challenge that was never used before."""
    return secrets.token_hex(16)


def proof(token: str, host: str, port: int, challenge: str) -> str:
    """Proof that the server at this address knows the token, for a client that knows it too.

    host: an IP address, from the socket that received the request.
    """
    text = f"{challenge} {host} {port}"
    return hmac.digest(token.encode(), text.encode(), "sha256").hex()


def proves(given: str | None, token: str, url: str, challenge: str) -> bool:
    """Whether ``given`` is the right proof; ``url`` is the address the request was sent to."""
    address = urlsplit(url)
    wanted = proof(token, address.hostname or "", address.port or 0, challenge)
    return given is not None and hmac.compare_digest(given.encode(), wanted.encode())
