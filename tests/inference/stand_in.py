"""An HTTP server that fails in ways that a real engine cannot be made to fail."""

from __future__ import annotations

import http.server
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from aent.inference.proof import CHALLENGE, PROOF
from aent.models.tokenizer import Tokenizer

RESET = object()  # instead of an answer: the connection is reset
COMPLETION = {
    "choices": [
        {
            "token_ids": [1, 2],
            "finish_reason": "length",
            "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -1.0}]},
            "weight_versions": [{"start": 0, "end": 2, "version": "3"}],
        }
    ]
}
# token 10 reads "10"
WORDS = Tokenizer(
    encode=lambda text: [int(text)],
    decode=lambda ids: " ".join(map(str, ids)),
    stop_ids=(99,),
    template=None,
    bos_ids=(),
)
Answer = tuple[int, Any]  # status; what is sent as JSON (bytes as they are)


@dataclass
class StandIn:
    """What it was asked, and what it answers (in a thread of each connection)."""

    url: str
    answer: Callable[[str, dict[str, Any]], Answer | object]  # of path, and query with body
    prove: Callable[[str], str] | None = None  # its answer to a challenge
    asked: list[str] = field(default_factory=list)  # paths
    told: list[str] = field(default_factory=list)  # headers of each request
    connections: int = 0
    kinds: dict[str, str] = field(default_factory=dict)  # by path: the answer's, where not JSON


@contextmanager
def standing_in(answer: Callable[[str, dict[str, Any]], Answer | object]) -> Iterator[StandIn]:
    """A server that answers so, and 200 to /health unless ``answer`` has something else for it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with lock:
                server.connections += 1

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            with lock:
                server.asked.append(path)
                server.told.append(str(self.headers))
            answer = server.answer(path, dict(parse_qsl(query)) | body)
            if answer is RESET:
                reset = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                self.connection.close()
                self.close_connection = True
                return
            status, content = answer  # type: ignore[misc]
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            kind = "text/plain" if path == "/metrics" else "application/json"
            kind = server.kinds.get(path, kind)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if server.prove is not None and CHALLENGE in self.headers:
                self.send_header(PROOF, server.prove(self.headers[CHALLENGE]))
            self.end_headers()
            self.wfile.write(content)

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            pass  # connections that clients give up

    lock = threading.Lock()
    with Server(("127.0.0.1", 0), Handler) as listening:
        server = StandIn(f"http://127.0.0.1:{listening.server_port}", answer)
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            listening.block_on_close = False
