"""Access control of an engine: every route needs the run's token.

vLLM's own API key leaves the routes for reinforcement learning open, which change weights and call
any method of a worker. vLLM imports this module by the name of ``TokenGate`` (``--middleware``).
"""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path
from typing import Any

from aent.inference.proof import CHALLENGE, PROOF, proof
from aent.inference.registry import read_token

FILE_VARIABLE = "AENT_TOKEN_FILE"  # names a file, so that the token is in no environment
OPEN_PATH = "/health"
RPC_PATH = "/collective_rpc"
OUR_METHODS = "aent_"  # prefix of the methods of ``weights.worker_extension.WorkerExtension``


class TokenGate:
    """ASGI middleware: 401 for a request without ``Authorization: Bearer TOKEN``, 403 for a call of
    a worker's method that is not ours."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.token = read_token(Path(os.environ[FILE_VARIABLE]))
        self.expected = b"Bearer " + self.token.encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass on the server's start and stop, health checks, and requests with the token."""
        path = scope.get("path")
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif path == OPEN_PATH:
            await self.app(scope, receive, self._proving(scope, send))
        elif not self._admits(scope):
            await refuse(scope, send, 401, b"the run's token is needed")
        elif path == RPC_PATH:
            body = await read_body(receive)
            if _is_ours(body):
                await self.app(scope, _again(body, receive), send)
            else:
                await refuse(scope, send, 403, b"no method of aent's")
        else:
            await self.app(scope, receive, send)

    def _admits(self, scope: dict[str, Any]) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self.expected)

    def _proving(self, scope: dict[str, Any], send: Any) -> Any:
        """``send``, with the proof that a challenge asks for. Its address is the socket's, not one
        from the request."""
        challenge = dict(scope.get("headers", ())).get(CHALLENGE.encode())
        if challenge is None or scope.get("server") is None:
            return send
        host, port = scope["server"]
        shown = proof(self.token, host, port, challenge.decode("latin-1"))
        header = (PROOF.encode(), shown.encode())

        async def send_proof(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        return send_proof


def _is_ours(body: bytes) -> bool:
    try:
        asked = json.loads(body)
    except ValueError:
        return False
    return isinstance(asked, dict) and str(asked.get("method")).startswith(OUR_METHODS)


async def read_body(receive: Any) -> bytes:
    """The whole body of a request."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Any) -> Any:
    """``receive`` for a second reader of a body that was already read."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> dict[str, Any]:
        return left.pop() if left else await receive()

    return receive_again


async def refuse(scope: dict[str, Any], send: Any, status: int, words: bytes) -> None:
    """Answer with a status and a reason."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words})
