"""The lock on an engine's door: every route asks for the run's token.

vLLM's own API key leaves the routes for reinforcement learning open, which change weights and call
any method of a worker. vLLM imports this module by the name of ``TokenGate`` (``--middleware``).
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Any

from aent.rollout.registry import read_token

FILE_VARIABLE = "AENT_TOKEN_FILE"  # names the file: the token itself is in no environment
OPEN_PATH = "/health"


class TokenGate:
    """ASGI middleware: 401 to a request without ``Authorization: Bearer TOKEN``."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.expected = b"Bearer " + read_token(Path(os.environ[FILE_VARIABLE])).encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Let the server's own start and stop, health checks and the token's bearers through."""
        if scope["type"] == "lifespan" or scope.get("path") == OPEN_PATH or self._admits(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"the run's token is needed"})

    def _admits(self, scope: dict[str, Any]) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self.expected)
